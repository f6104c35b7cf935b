"""Requests that nobody should send, by the thousand, against the real system; `make fuzz` runs it.

Four kinds: bodies that are nearly right (`bodies`), bytes that are nearly HTTP (`raw`), connections that come and go
(`short`), and what the OpenAPI document allows and forbids (`openapi`). A case is made of a seed, its kind and its
number alone, so each can be sent again by itself. Whatever is sent, the rules of `rules` and `watch` hold.
"""

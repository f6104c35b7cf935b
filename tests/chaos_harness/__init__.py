"""The chaos harness: real processes, faults at random times, open-loop load, and a checker that reads only their logs.

system  → starts the real parts, and can kill each
faults  → what is done to them, and when
load    → what clients ask meanwhile, and what they see
probes  → process tables, queues and memory, sampled; administration that must not be forgotten
check/* → I1 to I6 over the logs of the four above; knows by itself (oracle) what every answer must be
report  → the line, JSON, and a page with a picture
mutants → bugs planted into the real parts, each of which the checker must catch
"""

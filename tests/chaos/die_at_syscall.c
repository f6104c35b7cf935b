// Preloaded: kills its process instead of the DIE_AT-th call that would change a file whose path has "state.db" in it.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void point(const char *path) {
    static int left = -1;
    if (!path || !strstr(path, "state.db")) return;
    if (left < 0) left = getenv("DIE_AT") ? atoi(getenv("DIE_AT")) : 0;
    if (left > 0 && --left == 0) kill(getpid(), SIGKILL);
}

static void at(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n > 0) path[n] = 0, point(path);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *b, size_t n) { REAL(write); at(fd); return real(fd, b, n); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) { REAL(pwrite64); at(fd); return real(fd, b, n, o); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { REAL(pwrite); at(fd); return real(fd, b, n, o); }
int fsync(int fd) { REAL(fsync); at(fd); return real(fd); }
int fdatasync(int fd) { REAL(fdatasync); at(fd); return real(fd); }
int ftruncate64(int fd, off64_t n) { REAL(ftruncate64); at(fd); return real(fd, n); }
int ftruncate(int fd, off_t n) { REAL(ftruncate); at(fd); return real(fd, n); }
int unlink(const char *p) { REAL(unlink); point(p); return real(p); }
int rename(const char *a, const char *b) { REAL(rename); point(a); return real(a, b); }

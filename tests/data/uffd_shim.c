/*
 * A kernel with fewer abilities, to be preloaded: SHIM_MASK has bits that its answer to UFFDIO_API
 * lacks; with SHIM_DENY userfaultfd can't be opened, with SHIM_REFUSE nothing can be registered.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

enum { ANSWER_FEATURES = 1 };
static const unsigned long API = 0xc018aa3ful, REGISTER = 0xc020aa00ul;

static int denied(void)
{
    return getenv("SHIM_DENY") != NULL;
}

long syscall(long number, ...)
{
    static long (*real)(long, ...);
    long a[6];
    va_list list;

    if (!real) {
        real = dlsym(RTLD_NEXT, "syscall");
    }
    va_start(list, number);
    for (int n = 0; n < 6; n++) {
        a[n] = va_arg(list, long);
    }
    va_end(list);
    if (number == SYS_userfaultfd && denied()) {
        errno = EPERM;
        return -1;
    }
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

static int opened(const char *name, const char *path, int flags, mode_t mode)
{
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, name);

    if (denied() && strcmp(path, "/dev/userfaultfd") == 0) {
        errno = EACCES;
        return -1;
    }
    return real(path, flags, mode);
}

int open(const char *path, int flags, ...)
{
    va_list list;
    va_start(list, flags);
    mode_t mode = va_arg(list, mode_t);
    va_end(list);
    return opened("open", path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list list;
    va_start(list, flags);
    mode_t mode = va_arg(list, mode_t);
    va_end(list);
    return opened("open64", path, flags, mode);
}

int ioctl(int fd, unsigned long request, ...)
{
    static int (*real)(int, unsigned long, ...);
    const char *mask = getenv("SHIM_MASK");
    va_list list;
    int rc;

    if (!real) {
        real = dlsym(RTLD_NEXT, "ioctl");
    }
    va_start(list, request);
    void *argument = va_arg(list, void *);
    va_end(list);
    if (request == REGISTER && getenv("SHIM_REFUSE")) {
        errno = EINVAL;
        return -1;
    }
    rc = real(fd, request, argument);
    if (rc == 0 && request == API && mask) {
        ((uint64_t *)argument)[ANSWER_FEATURES] &= ~strtoull(mask, NULL, 0);
    }
    return rc;
}

#include "error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void start(struct vm_error *err, const char *operation)
{
    memset(err, 0, sizeof(*err));
    snprintf(err->operation, sizeof(err->operation), "%s", operation);
}

int vm_fail_errno(struct vm_error *err, const char *operation, uint64_t address)
{
    int saved = errno;

    start(err, operation);
    err->errnum = saved;
    err->address = address;
    return -1;
}

int vm_fail_because(struct vm_error *err, const char *operation, uint64_t address,
                    const char *format, ...)
{
    va_list args;

    start(err, operation);
    err->address = address;
    va_start(args, format);
    vsnprintf(err->detail, sizeof(err->detail), format, args);
    va_end(args);
    return -1;
}

int vm_fail_protocol(struct vm_error *err, const char *operation, const char *format, ...)
{
    va_list args;

    start(err, operation);
    err->protocol = VM_PEER_BROKE_PROTOCOL;
    va_start(args, format);
    vsnprintf(err->detail, sizeof(err->detail), format, args);
    va_end(args);
    return -1;
}

int vm_fail_gone(struct vm_error *err, const char *operation, const char *detail)
{
    start(err, operation);
    err->protocol = VM_PEER_GONE;
    snprintf(err->detail, sizeof(err->detail), "%s", detail);
    return -1;
}

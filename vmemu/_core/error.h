/* How the core says what went wrong: functions return 0, or -1 with this filled in. */
#ifndef VM_ERROR_H
#define VM_ERROR_H

#include <stdint.h>

struct vm_error {
    char operation[48]; /* what was tried, such as "UFFDIO_COPY" */
    int32_t errnum;     /* errno, or 0 when no system call is to blame */
    int32_t protocol;   /* 1: the peer broke the protocol; 2: the peer is gone */
    uint64_t address;   /* the memory it was about, or 0 */
    char detail[160];   /* words for a person, or empty */
};

enum { VM_PEER_BROKE_PROTOCOL = 1, VM_PEER_GONE = 2 };

/* Each fills *err and returns -1, so that a caller can write `return vm_fail_...(...)`. */
int vm_fail_errno(struct vm_error *err, const char *operation, uint64_t address);
/* The host did something else than it should; no errno says it. */
int vm_fail_because(struct vm_error *err, const char *operation, uint64_t address,
                    const char *format, ...) __attribute__((format(printf, 4, 5)));
int vm_fail_protocol(struct vm_error *err, const char *operation, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
int vm_fail_gone(struct vm_error *err, const char *operation, const char *detail);

#endif

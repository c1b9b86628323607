/*
 * The part of the kernel's userfaultfd interface that vmemu uses, written out from the manual pages
 * ioctl_userfaultfd(2) and userfaultfd(2). A distribution's <linux/userfaultfd.h> may be years
 * older than the running kernel, so the build does not depend on it.
 */
#ifndef VM_UFFD_ABI_H
#define VM_UFFD_ABI_H

#include <linux/types.h>
#include <sys/ioctl.h>

#define UFFD_API            ((__u64)0xAA)
#define UFFD_USER_MODE_ONLY 1 /* flag of userfaultfd(2) */

enum {
    UFFD_NR_REGISTER = 0x00,
    UFFD_NR_UNREGISTER = 0x01,
    UFFD_NR_WAKE = 0x02,
    UFFD_NR_COPY = 0x03,
    UFFD_NR_ZEROPAGE = 0x04,
    UFFD_NR_WRITEPROTECT = 0x06,
    UFFD_NR_CONTINUE = 0x07,
    UFFD_NR_API = 0x3F,
};

struct uffd_api {
    __u64 api;
    __u64 features; /* in: asked for; out: what the kernel has */
    __u64 ioctls;   /* out: bit N is the ioctl with number N */
};

struct uffd_range {
    __u64 start;
    __u64 len;
};

struct uffd_register {
    struct uffd_range range;
    __u64 mode;
    __u64 ioctls; /* out: what can be done on this range */
};

struct uffd_copy {
    __u64 dst;
    __u64 src;
    __u64 len;
    __u64 mode;
    __s64 copy; /* out: bytes done, or a negative errno */
};

struct uffd_zeropage {
    struct uffd_range range;
    __u64 mode;
    __s64 zeropage; /* out: bytes done, or a negative errno */
};

struct uffd_continue {
    struct uffd_range range;
    __u64 mode;
    __s64 mapped; /* out: bytes done, or a negative errno */
};

struct uffd_writeprotect {
    struct uffd_range range;
    __u64 mode;
};

struct uffd_msg {
    __u8 event;
    __u8 reserved1;
    __u16 reserved2;
    __u32 reserved3;
    union {
        struct {
            __u64 flags;
            __u64 address;
            __u32 ptid; /* with UFFD_FEATURE_THREAD_ID */
        } pagefault;
        struct {
            __u64 start;
            __u64 end;
        } remove;
        __u64 reserved[3];
    } arg;
} __attribute__((packed));

_Static_assert(sizeof(struct uffd_msg) == 32, "struct uffd_msg is kernel interface");

#define UFFDIO_API          _IOWR(0xAA, UFFD_NR_API, struct uffd_api)
#define UFFDIO_REGISTER     _IOWR(0xAA, UFFD_NR_REGISTER, struct uffd_register)
#define UFFDIO_UNREGISTER   _IOR(0xAA, UFFD_NR_UNREGISTER, struct uffd_range)
#define UFFDIO_WAKE         _IOR(0xAA, UFFD_NR_WAKE, struct uffd_range)
#define UFFDIO_COPY         _IOWR(0xAA, UFFD_NR_COPY, struct uffd_copy)
#define UFFDIO_ZEROPAGE     _IOWR(0xAA, UFFD_NR_ZEROPAGE, struct uffd_zeropage)
#define UFFDIO_WRITEPROTECT _IOWR(0xAA, UFFD_NR_WRITEPROTECT, struct uffd_writeprotect)
#define UFFDIO_CONTINUE     _IOWR(0xAA, UFFD_NR_CONTINUE, struct uffd_continue)
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00) /* on /dev/userfaultfd */

enum { UFFD_EVENT_PAGEFAULT = 0x12, UFFD_EVENT_REMOVE = 0x15 };
enum {
    UFFD_REGISTER_MODE_MISSING = 1 << 0,
    UFFD_REGISTER_MODE_WP = 1 << 1,
    UFFD_REGISTER_MODE_MINOR = 1 << 2,
};
enum {
    UFFD_PAGEFAULT_FLAG_WRITE = 1 << 0,
    UFFD_PAGEFAULT_FLAG_WP = 1 << 1,
    UFFD_PAGEFAULT_FLAG_MINOR = 1 << 2,
};
enum { UFFD_WRITEPROTECT_WP = 1 << 0 };

#endif

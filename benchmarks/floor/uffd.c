#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "floor.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

int uffd_open(uint64_t features)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_api api = {.api = UFFD_API, .features = features};

    if (fd < 0) {
        fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    }
    if (fd < 0) {
        not_here("userfaultfd");
    }
    if (ioctl(fd, UFFDIO_API, &api)) {
        not_here("UFFDIO_API");
    }
    return fd;
}

void uffd_register(int uffd, void *memory, size_t bytes, uint64_t mode)
{
    struct uffdio_register area = {.range = {(uintptr_t)memory, bytes}, .mode = mode};

    if (ioctl(uffd, UFFDIO_REGISTER, &area)) {
        not_here("UFFDIO_REGISTER");
    }
}

uint64_t uffd_next(int uffd)
{
    struct uffd_msg message;

    if (read(uffd, &message, sizeof(message)) != sizeof(message)) {
        failed("read of userfaultfd");
    }
    if (message.event != UFFD_EVENT_PAGEFAULT) {
        failed("an event that is no fault");
    }
    return message.arg.pagefault.address;
}

void uffd_place(int uffd, void *to, const void *from, size_t bytes, bool wake)
{
    for (size_t done = 0; done < bytes;) {
        struct uffdio_copy copy = {
            .dst = (uintptr_t)to + done,
            .src = (uintptr_t)from + done,
            .len = bytes - done,
            .mode = wake ? 0 : UFFDIO_COPY_MODE_DONTWAKE,
        };

        /* EAGAIN: the mappings are changing, and what was done until then counts. */
        if (ioctl(uffd, UFFDIO_COPY, &copy) && errno != EAGAIN) {
            failed("UFFDIO_COPY");
        }
        done += copy.copy > 0 ? (size_t)copy.copy : 0;
    }
}

void uffd_map(int uffd, void *at, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        struct uffdio_continue map = {
            .range = {(uintptr_t)at + done, bytes - done},
            .mode = UFFDIO_CONTINUE_MODE_DONTWAKE,
        };

        if (ioctl(uffd, UFFDIO_CONTINUE, &map) && errno != EAGAIN) {
            failed("UFFDIO_CONTINUE");
        }
        done += map.mapped > 0 ? (size_t)map.mapped : 0;
    }
}

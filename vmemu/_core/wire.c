#include "wire.h"

#include <errno.h>
#include <poll.h>
#include <sys/uio.h>

static int wait_writable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};

    return poll(&p, 1, -1) < 0 && errno != EINTR ? -1 : 0;
}

int vm_wire_send(int fd, const struct vm_header *header, const void *payload)
{
    struct iovec part[2] = {
        {(void *)header, sizeof(*header)},
        {(void *)payload, header->length},
    };
    struct iovec *next = part;
    int left = header->length ? 2 : 1;

    while (left > 0) {
        ssize_t done = writev(fd, next, left);

        if (done < 0) {
            if (errno == EINTR || (errno == EAGAIN && wait_writable(fd) == 0)) {
                continue;
            }
            return -1;
        }
        while (left > 0 && (size_t)done >= next->iov_len) {
            done -= (ssize_t)next->iov_len;
            next++;
            left--;
        }
        if (left > 0) {
            next->iov_base = (char *)next->iov_base + done;
            next->iov_len -= (size_t)done;
        }
    }
    return 0;
}

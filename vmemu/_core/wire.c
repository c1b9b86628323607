#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int wait_writable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};

    return poll(&p, 1, -1) < 0 && errno != EINTR ? -1 : 0;
}

static int send_all(int fd, struct iovec *next, int left)
{
    while (left > 0) {
        ssize_t done =
            left == 1 ? write(fd, next->iov_base, next->iov_len) : writev(fd, next, left);

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

/* To copy a small page behind its header costs less than to write two parts. */
enum { JOINED = 4096 };

static int send_joined(int fd, const struct vm_header *header, const void *payload)
{
    uint8_t whole[sizeof(*header) + JOINED];

    memcpy(whole, header, sizeof(*header));
    memcpy(whole + sizeof(*header), payload, header->length);
    return send_all(fd, &(struct iovec){whole, sizeof(*header) + header->length}, 1);
}

int vm_wire_send(int fd, const struct vm_header *header, const void *payload)
{
    struct iovec part[2] = {
        {(void *)header, sizeof(*header)},
        {(void *)payload, header->length},
    };

    if (header->length && header->length <= JOINED) {
        return send_joined(fd, header, payload);
    }
    return send_all(fd, part, header->length ? 2 : 1);
}

/* False when the descriptor, or the host, takes no pages: what is left must be written. */
static bool lend(int fd, struct iovec *left)
{
    while (left->iov_len > 0) {
        ssize_t done = vmsplice(fd, left, 1, 0);

        if (done >= 0) {
            left->iov_base = (char *)left->iov_base + done;
            left->iov_len -= (size_t)done;
        } else if (errno != EINTR && !(errno == EAGAIN && wait_writable(fd) == 0)) {
            return false;
        }
    }
    return true;
}

int vm_wire_lend(int fd, const struct vm_header *header, const void *payload)
{
    struct iovec left = {(void *)payload, header->length};

    if (header->length <= JOINED) {
        return vm_wire_send(fd, header, payload);
    }
    if (send_all(fd, &(struct iovec){(void *)header, sizeof(*header)}, 1) < 0) {
        return -1;
    }
    /* What is wrong with the channel itself, write says again. */
    return lend(fd, &left) ? 0 : send_all(fd, &left, 1);
}

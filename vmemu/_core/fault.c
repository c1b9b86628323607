/*
 * The fault thread. What the kernel gives and what can race:
 *
 *  - A fault is queued before its page table entry is looked at again, and a placed page wakes its
 * waiters after the entry is set; so a waiter is either woken or sees the page, and a message may
 * be read for a page that has arrived meanwhile. Such a page is woken again, which costs nothing
 * when nobody waits.
 *  - Several threads fault on one page: each gives a message of its own, the page is asked for
 * once.
 *  - poll may say that there is something and read then give EAGAIN (the waiter was woken in
 * between).
 *  - With an urgent channel this thread both asks and receives. It must never stop in a write to
 * the return path while the source stops in a write to the urgent channel; so requests that find no
 * room are kept, and while any is kept no further fault is read.
 */
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "incoming.h"
#include "receiver.h"
#include "uffd_abi.h"
#include "util.h"

enum { MESSAGES_AT_ONCE = 64 };

struct request {
    uint32_t block;
    uint64_t page;
};

struct fault_thread {
    struct vm_incoming *in;
    struct vm_receiver *urgent; /* NULL without preempt */
    int64_t named;              /* the block that the last request named, or -1 */
    unsigned kept;              /* requests that wait for room, in the order of their faults */
    struct request keep[MESSAGES_AT_ONCE];
};

/* 1 when sent, 0 when there is no room now, -1 on failure. A message is below PIPE_BUF: whole or
 * not at all. */
static int send_request(struct fault_thread *t, struct request q, struct vm_error *err)
{
    const struct vm_block *block = &t->in->ram->block[q.block];
    struct {
        struct vm_header header;
        char name[VM_NAME_MAX + 1];
    } message = {.header = {
                     .type = VM_MSG_REQ_PAGES,
                     .block = q.block,
                     .offset = q.page << block->page_shift,
                     .pages = 1,
                 }};

    if (t->named != q.block) {
        message.header.type = VM_MSG_REQ_PAGES_ID;
        message.header.length = block->name_length;
        memcpy(message.name, block->name, block->name_length);
    }
    while (write(t->in->return_fd, &message, sizeof(message.header) + message.header.length) < 0) {
        if (errno == EAGAIN) {
            return 0;
        }
        if (errno == EPIPE) {
            return vm_fail_gone(err, "return path",
                                "the source closed it while pages were missing");
        }
        if (errno != EINTR) {
            return vm_fail_errno(err, "return path", 0);
        }
    }
    t->named = q.block;
    vm_add(&t->in->stats.requests, 1);
    return 1;
}

static int request_or_keep(struct fault_thread *t, struct request q, struct vm_error *err)
{
    int sent = t->kept ? 0 : send_request(t, q, err);

    if (sent == 0) {
        t->keep[t->kept++] = q;
        vm_add(&t->in->stats.deferred, 1);
    }
    return sent < 0 ? -1 : 0;
}

static int send_kept(struct fault_thread *t, struct vm_error *err)
{
    unsigned sent = 0;

    while (sent < t->kept) {
        int rc = send_request(t, t->keep[sent], err);

        if (rc < 0) {
            return -1;
        }
        if (rc == 0) {
            break;
        }
        sent++;
    }
    t->kept -= sent;
    memmove(t->keep, t->keep + sent, t->kept * sizeof(t->keep[0]));
    return 0;
}

static void count_for_vcpu(struct vm_incoming *in, uint32_t tid)
{
    uint32_t vcpus = vm_get_acquire(&in->vcpus);

    for (uint32_t i = 0; i < vcpus; i++) {
        if (vm_get(&in->vcpu_tid[i]) == tid) {
            vm_add(&in->vcpu_faults[i], 1);
            return;
        }
    }
}

static int handle_fault(struct fault_thread *t, uint64_t address, uint32_t tid,
                        struct vm_error *err)
{
    struct vm_incoming *in = t->in;
    int64_t found = vm_ram_find(in->ram, address);
    struct vm_block *block;
    struct request q;

    if (found < 0) {
        vm_add(&in->stats.foreign, 1);
        return 0;
    }
    vm_add(&in->stats.messages, 1);
    count_for_vcpu(in, tid); /* before the page can come, so that the vCPU finds it counted */
    block = &in->ram->block[found];
    q.block = (uint32_t)found;
    q.page = (address - block->host) >> block->page_shift;
    if (vm_bit_test(block->received, q.page)) {
        vm_add(&in->stats.late, 1);
        return vm_uffd_wake(in->uffd, block->host + (q.page << block->page_shift),
                            UINT64_C(1) << block->page_shift, err);
    }
    if (vm_bit_test_and_set(block->requested, q.page)) {
        vm_add(&in->stats.shared, 1);
        return 0;
    }
    return request_or_keep(t, q, err);
}

static int read_faults(struct fault_thread *t, struct vm_error *err)
{
    struct uffd_msg message[MESSAGES_AT_ONCE];
    ssize_t got = read(t->in->uffd, message, sizeof(message));

    if (got < 0) {
        if (errno == EAGAIN || errno == EINTR) {
            vm_add(&t->in->stats.spurious, 1);
            return 0;
        }
        return vm_fail_errno(err, "read of userfaultfd", 0);
    }
    if ((size_t)got % sizeof(message[0]) != 0) {
        errno = EIO;
        return vm_fail_errno(err, "read of userfaultfd: a message was cut short", 0);
    }
    for (size_t i = 0; i < (size_t)got / sizeof(message[0]); i++) {
        if (message[i].event != UFFD_EVENT_PAGEFAULT) {
            vm_add(&t->in->stats.foreign, 1);
        } else if (handle_fault(t, message[i].arg.pagefault.address, message[i].arg.pagefault.ptid,
                                err) < 0) {
            return -1;
        }
    }
    return 0;
}

enum { POLL_QUIT, POLL_UFFD, POLL_URGENT, POLL_RETURN, POLL_COUNT };

/* A descriptor of -1 is passed over by poll: that is how a channel is left out of a round. */
static int handle_round(struct fault_thread *t, struct pollfd *p, struct vm_error *err)
{
    if (p[POLL_URGENT].revents) {
        int rc = vm_receiver_step(t->urgent, err);

        if (rc < 0) {
            return -1;
        }
        if (rc == VM_RECEIVED_COMPLETE) {
            p[POLL_URGENT].fd = -1; /* the source has sent its last urgent page */
        }
    }
    if (p[POLL_RETURN].revents && send_kept(t, err) < 0) {
        return -1;
    }
    return p[POLL_UFFD].revents ? read_faults(t, err) : 0;
}

static int serve_faults(struct fault_thread *t, struct vm_error *err)
{
    struct vm_incoming *in = t->in;
    struct pollfd p[POLL_COUNT] = {
        [POLL_QUIT] = {.fd = in->quit_fd, .events = POLLIN},
        [POLL_UFFD] = {.events = POLLIN},
        [POLL_URGENT] = {.fd = in->urgent_fd, .events = POLLIN},
        [POLL_RETURN] = {.events = POLLOUT},
    };

    for (;;) {
        p[POLL_UFFD].fd = t->kept ? -1 : in->uffd;
        p[POLL_RETURN].fd = t->kept ? in->return_fd : -1;
        if (poll(p, POLL_COUNT, -1) < 0) {
            if (errno == EINTR) {
                continue;
            }
            return vm_fail_errno(err, "poll of the fault thread", 0);
        }
        if (p[POLL_QUIT].revents) {
            return 0;
        }
        if (handle_round(t, p, err) < 0) {
            return -1;
        }
    }
}

int vm_fault_loop(struct vm_incoming *in, struct vm_error *err)
{
    struct vm_receiver receiver;
    struct fault_thread thread = {.in = in, .named = -1};
    int rc;

    if (in->urgent_fd < 0) {
        return serve_faults(&thread, err);
    }
    if (vm_receiver_create(&receiver, in, in->urgent_fd, "urgent channel", 1, &in->placed_urgent,
                           err) < 0) {
        return -1;
    }
    thread.urgent = &receiver;
    rc = serve_faults(&thread, err);
    vm_receiver_destroy(&receiver);
    return rc;
}

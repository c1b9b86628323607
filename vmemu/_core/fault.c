/*
 * The fault threads. What the kernel gives and what can race:
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
 *  - Several fault threads may read one userfaultfd: each message is given to one of them, and all
 * may be woken for it. Only the first owns the urgent channel.
 *  - A client process has a mapping of its own on a shared block and a userfaultfd of its own. A
 * page that is placed here is there for it too, but its waiters wait on its userfaultfd and are
 * woken there.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "asking.h"
#include "incoming.h"
#include "receiver.h"
#include "scheduling.h"
#include "shared_in.h"
#include "uffd_abi.h"
#include "util.h"

struct fault_thread {
    struct vm_incoming *in;
    struct vm_receiver *urgent; /* NULL without preempt, and in all but the first thread */
    struct vm_asking asking;
    struct pollfd *polled;
};

/* Threads that are started one after the other have thread ids one after the other, as a rule:
 * so a fault is counted at the same cost however many vCPUs there are. */
static int64_t vcpu_of(uint32_t vcpus, const uint32_t *vcpu_tid, uint32_t tid)
{
    uint32_t likely = vcpus ? tid - vm_get(&vcpu_tid[0]) : 0;

    if (likely < vcpus && vm_get(&vcpu_tid[likely]) == tid) {
        return likely;
    }
    for (uint32_t i = 0; i < vcpus; i++) {
        if (vm_get(&vcpu_tid[i]) == tid) {
            return i;
        }
    }
    return -1;
}

/* Counts the fault, and finds where it is known where that vCPU is going; NULL: nowhere. */
static struct vm_walker *count_for_vcpu(uint32_t vcpus, const uint32_t *vcpu_tid,
                                        uint64_t *vcpu_faults, struct vm_walker *walker,
                                        uint32_t tid)
{
    int64_t found = vcpu_of(vcpus, vcpu_tid, tid);

    if (found < 0) {
        return NULL;
    }
    vm_add(&vcpu_faults[found], 1);
    return walker ? &walker[found] : NULL;
}

/* Before the page can come, so that the vCPU finds its fault counted. */
static struct vm_walker *count_fault(struct vm_incoming *in, const struct vm_client *client,
                                     uint32_t tid)
{
    if (client) {
        vm_add(&in->stats.of_clients, 1);
        return count_for_vcpu(client->vcpus, client->vcpu_tid, client->vcpu_faults, client->walker,
                              tid);
    }
    return count_for_vcpu(vm_get_acquire(&in->vcpus), in->vcpu_tid, in->vcpu_faults, in->walker,
                          tid);
}

/* Where an address of the guest, or of a client's mapping, lies in the blocks; false: nowhere. */
static bool locate(const struct vm_incoming *in, const struct vm_client *client, uint64_t address,
                   struct vm_request *q)
{
    uint64_t offset;

    if (client) {
        q->block = client->block;
        offset = address - client->base;
        if (offset >= client->size) {
            return false;
        }
    } else {
        int64_t found = vm_ram_find(in->ram, address);

        if (found < 0) {
            return false;
        }
        q->block = (uint32_t)found;
        offset = address - in->ram->block[found].host;
    }
    q->page = offset >> in->ram->block[q->block].page_shift;
    return true;
}

/* The page has come since the fault was queued: whoever waits for it, here or in the client, goes
 * on. */
static int wake(struct vm_incoming *in, const struct vm_client *client, struct vm_request q,
                struct vm_error *err)
{
    const struct vm_block *block = &in->ram->block[q.block];
    uint64_t offset = q.page << block->page_shift, length = UINT64_C(1) << block->page_shift;

    if (client) {
        vm_clients_wake(in, q.block, offset, length);
        return 0;
    }
    return block->in_image ? vm_image_map_again(in, block, offset, err)
                           : vm_uffd_wake(in->uffd, block->host + offset, length, err);
}

static void log_fault(const struct vm_incoming *in, const struct vm_client *client,
                      struct vm_request q, uint32_t tid)
{
    uint64_t offset = q.page << in->ram->block[q.block].page_shift;

    if (client) {
        vm_event(in->log, VM_EVENT_REQUEST_SHARED, q.block, offset,
                 (uint64_t)(client - in->client));
    } else {
        vm_event(in->log, VM_EVENT_FAULT_THREAD_REQUEST, q.block, offset, tid);
    }
}

static int handle_fault(struct fault_thread *t, const struct vm_client *client,
                        const struct uffd_msg *m, struct vm_error *err)
{
    struct vm_incoming *in = t->in;
    struct vm_block *block;
    struct vm_walker *walker;
    struct vm_request q = {.ahead = 0};

    if (!locate(in, client, m->arg.pagefault.address, &q)) {
        vm_add(&in->stats.foreign, 1);
        return 0;
    }
    block = &in->ram->block[q.block];
    __builtin_prefetch(&block->ask[q.page], 1); /* seldom in a cache, and needed in a moment */
    vm_add(&in->stats.messages, 1);
    walker = count_fault(in, client, m->arg.pagefault.ptid);
    log_fault(in, client, q, m->arg.pagefault.ptid);
    if (vm_bit_test(block->received, q.page)) {
        vm_add(&in->stats.late, 1);
        return wake(in, client, q, err);
    }
    if (vm_bit_test_and_set(block->requested, q.page)) {
        vm_add(&in->stats.shared, 1);
        /* It may have come between the two looks, when nobody knew yet that a client waits for it.
         */
        return client && vm_bit_test(block->received, q.page) ? wake(in, client, q, err) : 0;
    }
    vm_ask_note(in, q, m->arg.pagefault.ptid);
    if (walker) {
        q.ahead = vm_walker_ahead(walker, block, q.block, q.page, &q.stride);
    }
    return vm_ask(&t->asking, q, err);
}

/* How many messages were read and handled, or -1. */
static int read_faults(struct fault_thread *t, const struct vm_client *client, struct vm_error *err)
{
    struct uffd_msg message[VM_ASK_AT_ONCE];
    size_t room = VM_ASK_AT_ONCE - t->asking.kept;
    ssize_t got = read(client ? client->uffd : t->in->uffd, message, room * sizeof(message[0]));

    if (got < 0) {
        return errno == EAGAIN || errno == EINTR ? 0 : vm_fail_errno(err, "read of userfaultfd", 0);
    }
    if (got == 0 || (size_t)got % sizeof(message[0]) != 0) {
        errno = EIO;
        return vm_fail_errno(err, "read of userfaultfd: a message was cut short", 0);
    }
    for (size_t i = 0; i < (size_t)got / sizeof(message[0]); i++) {
        if (message[i].event != UFFD_EVENT_PAGEFAULT) {
            vm_add(&t->in->stats.foreign, 1);
        } else if (handle_fault(t, client, &message[i], err) < 0) {
            return -1;
        }
    }
    return (int)((size_t)got / sizeof(message[0]));
}

static int read_announced(struct fault_thread *t, const struct vm_client *client,
                          struct vm_error *err)
{
    int read = read_faults(t, client, err);

    if (read == 0) {
        vm_add(&t->in->stats.spurious, 1);
    }
    return read;
}

/* The clients' userfaultfds follow in the order of in->client. */
enum { POLL_QUIT, POLL_URGENT, POLL_RETURN, POLL_UFFD, POLL_CLIENTS };

/* 1 when something came, 0 when nothing did, or -1. */
static int receive_urgent(struct fault_thread *t, struct vm_error *err)
{
    int rc = vm_receiver_step(t->urgent, err);

    if (rc == VM_RECEIVED_COMPLETE) {
        t->polled[POLL_URGENT].fd = -1; /* the source has sent its last urgent page */
    }
    return rc < 0 ? -1 : rc == VM_RECEIVED_MORE;
}

static int handle_round(struct fault_thread *t, struct vm_error *err)
{
    struct pollfd *p = t->polled;

    if (p[POLL_URGENT].revents && receive_urgent(t, err) < 0) {
        return -1;
    }
    if (p[POLL_RETURN].revents && vm_ask_kept(&t->asking, err) < 0) {
        return -1;
    }
    if (p[POLL_UFFD].revents && read_announced(t, NULL, err) < 0) {
        return -1;
    }
    for (uint32_t i = 0; i < t->in->clients; i++) {
        struct pollfd *of_client = &p[POLL_CLIENTS + i];

        if (of_client->revents & (POLLERR | POLLHUP | POLLNVAL)) {
            of_client->fd = -1; /* the client has ended */
        } else if (of_client->revents && t->asking.kept < VM_ASK_AT_ONCE &&
                   read_announced(t, &t->in->client[i], err) < 0) {
            return -1;
        }
    }
    return 0;
}

/*
 * On one CPU the source and the vCPU that are woken by a request and by a page run at once, before
 * this thread does: the answer and the next fault are there when it goes on, and a poll would only
 * say so. On several they are not yet, and looking for them costs nothing that anybody waits for.
 */
static int serve_directly(struct fault_thread *t, struct vm_error *err)
{
    /* Then poll is asked: who tells this thread to quit, and clients, must not wait for ever. */
    enum { TURNS = 16 };
    bool asked = t->polled[POLL_UFFD].revents;

    for (unsigned turn = 0; turn < TURNS && t->asking.kept == 0; turn++) {
        int rc = asked ? receive_urgent(t, err) : read_faults(t, NULL, err);

        if (rc <= 0) {
            return rc;
        }
        if (t->polled[POLL_URGENT].fd < 0) {
            return 0;
        }
        asked = !asked;
    }
    return 0;
}

/* A negative descriptor is passed over by poll: no further fault is read while a request is kept.
 */
static void choose_polled(struct fault_thread *t)
{
    bool kept = t->asking.kept > 0;

    t->polled[POLL_UFFD].fd = kept ? -1 : t->in->uffd;
    t->polled[POLL_RETURN].fd = kept ? t->in->return_fd : -1;
    for (uint32_t i = 0; i < t->in->clients; i++) {
        t->polled[POLL_CLIENTS + i].events = kept ? 0 : POLLIN;
    }
}

static int serve_faults(struct fault_thread *t, struct vm_error *err)
{
    t->polled[POLL_QUIT] = (struct pollfd){.fd = t->in->quit_fd, .events = POLLIN};
    t->polled[POLL_URGENT] =
        (struct pollfd){.fd = t->urgent ? t->urgent->fd : -1, .events = POLLIN};
    t->polled[POLL_RETURN].events = POLLOUT;
    t->polled[POLL_UFFD].events = POLLIN;
    for (uint32_t i = 0; i < t->in->clients; i++) {
        t->polled[POLL_CLIENTS + i].fd = t->in->client[i].uffd;
    }
    vm_event(t->in->log, VM_EVENT_FAULT_THREAD_ENTRY, 0, 0, 0);
    vm_add(&t->in->fault_running, 1);
    eventfd_write(t->in->bell_fd, 1); /* whoever started it waits to know that it runs */
    for (;;) {
        choose_polled(t);
        if (poll(t->polled, POLL_CLIENTS + t->in->clients, -1) < 0) {
            if (errno == EINTR) {
                continue;
            }
            return vm_fail_errno(err, "poll of the fault thread", 0);
        }
        if (t->polled[POLL_QUIT].revents) {
            vm_event(t->in->log, VM_EVENT_FAULT_THREAD_QUIT, 0, 0, 0);
            return 0;
        }
        if (handle_round(t, err) < 0) {
            return -1;
        }
        if (t->polled[POLL_URGENT].fd >= 0 && serve_directly(t, err) < 0) {
            return -1;
        }
    }
}

static int serve_with_urgent(struct fault_thread *t, struct vm_error *err)
{
    struct vm_receiver receiver;
    int rc, flags = fcntl(t->in->urgent_fd, F_GETFL);

    /* It is also read when nothing has announced a page. */
    if (flags < 0 || fcntl(t->in->urgent_fd, F_SETFL, flags | O_NONBLOCK) < 0) {
        return vm_fail_errno(err, "O_NONBLOCK on the urgent channel", 0);
    }
    if (vm_receiver_create(&receiver, t->in, t->in->urgent_fd, "urgent channel", 1,
                           &t->in->placed_urgent, &t->in->stages_urgent, err) < 0) {
        return -1;
    }
    t->urgent = &receiver;
    rc = serve_faults(t, err);
    vm_receiver_destroy(&receiver);
    return rc;
}

int vm_fault_loop(struct vm_incoming *in, uint32_t index, struct vm_error *err)
{
    struct fault_thread thread = {
        .in = in,
        .asking = {.in = in,
                   .fd = in->return_fd,
                   .named = -1,
                   .always_name = in->fault_threads > 1},
        .polled = calloc(POLL_CLIENTS + in->clients, sizeof(struct pollfd)),
    };
    int rc;

    if (!thread.polled) {
        errno = ENOMEM;
        return vm_fail_errno(err, "memory for the fault thread", 0);
    }
    vm_schedule_urgent();
    rc = index == 0 && in->urgent_fd >= 0 ? serve_with_urgent(&thread, err)
                                          : serve_faults(&thread, err);
    free(thread.polled);
    vm_event(in->log, VM_EVENT_FAULT_THREAD_EXIT, 0, 0, 0);
    return rc;
}

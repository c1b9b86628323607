/*
 * What can race, besides what waiting.c says:
 *
 *  - The kernel sends SIGBUS without looking at the page a second time, so it may be there when the
 * handler looks. Then the touch is made again, once: what is refused with the page in its place is
 * no missing page.
 *  - A vCPU that waits for its source stands in read(), without a poll before it, which would be
 * one more system call a fault. The end of the source shows as the end of the pipe, so no writing
 * end may stay open here. Who ends the run opens one for a moment and writes a byte, after `over`
 * is set: the vCPU looks at that after each read.
 */
#include "delivery.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "shared_in.h"
#include "sigbus.h"
#include "util.h"
#include "waiting.h"

/* The owner finds the error, and lets go of everybody. */
static void fail_and_wait(struct vm_delivery *d)
{
    vm_set_release(&d->failed, 1);
    eventfd_write(d->in->bell_fd, 1);
    vm_delivery_wait_for_end(d);
}

/* ---- fetching ---- */

/* Until the source has answered, the page being here by then or not: its answer left in the pipe
 * would be taken for the next one. */
static int receive(struct vm_delivery *d)
{
    while (d->receiver.awaits && !vm_delivery_is_over(d)) {
        int rc = vm_receiver_step(&d->receiver, &d->error);

        if (rc < 0 || rc == VM_RECEIVED_COMPLETE) {
            return rc < 0 ? -1 : 0;
        }
    }
    return 0;
}

static int fetch(struct vm_delivery *d, struct vm_request q)
{
    vm_ask_note(d->in, q, vm_get(d->tid));
    d->receiver.awaited = q;
    d->receiver.awaits = true;
    return vm_ask(&d->asking, q, &d->error) < 0 ? -1 : receive(d);
}

static void note_fault(struct vm_delivery *d, struct vm_request q)
{
    struct vm_incoming *in = d->in;

    vm_add(&in->stats.messages, 1);
    vm_count(d->faults, 1);
    vm_event(in->log, VM_EVENT_FAULT_THREAD_REQUEST, q.block,
             q.page << in->ram->block[q.block].page_shift, vm_get(d->tid));
}

static void bring(struct vm_delivery *d, struct vm_request q)
{
    if (vm_bit_test_and_set(d->in->ram->block[q.block].requested, q.page)) {
        vm_add(&d->in->stats.shared, 1);
    } else if (fetch(d, q) < 0 && !vm_delivery_is_over(d)) {
        fail_and_wait(d);
    }
    if (!vm_delivery_has(d, q)) {
        vm_delivery_wait(d, q);
    }
}

/* With nothing to fetch: once a touch may have come too early for its page, or too late for the
 * end. */
static bool retry(struct vm_delivery *d, uint64_t address)
{
    bool again = d->retried != address;

    d->retried = address;
    return again;
}

/* It has come since the touch; or the kernel has taken it out of the page table, as it may with a
 * page of an image, and a touch alone would not bring it back. */
static bool touch_again(struct vm_delivery *d, struct vm_request q, uint64_t address)
{
    const struct vm_block *block = &d->in->ram->block[q.block];

    vm_add(&d->in->stats.late, 1);
    if (!block->in_image) {
        return retry(d, address);
    }
    if (vm_image_map_again(d->in, block, q.page << block->page_shift, &d->error) < 0 &&
        !vm_delivery_is_over(d)) {
        fail_and_wait(d);
    }
    return true;
}

static bool serve(void *context, uint64_t address)
{
    struct vm_delivery *d = context;
    int64_t found = vm_ram_find(d->in->ram, address);
    const struct vm_block *block;
    struct vm_request q = {0};

    if (found < 0) {
        return false;
    }
    block = &d->in->ram->block[found];
    q.block = (uint32_t)found;
    q.page = (address - block->host) >> block->page_shift;
    if (vm_delivery_is_over(d)) {
        return retry(d, address);
    }
    note_fault(d, q);
    if (vm_delivery_has(d, q)) {
        return touch_again(d, q, address);
    }
    bring(d, q);
    return true;
}

/* ---- its life ---- */

int vm_delivery_open(struct vm_delivery *d, struct vm_incoming *in, uint32_t vcpu, int page_fd,
                     int return_fd, struct vm_error *err)
{
    d->in = in;
    d->tid = &in->vcpu_tid[vcpu];
    d->faults = &in->vcpu_faults[vcpu];
    d->page_fd = page_fd;
    d->waits_for = VM_NO_PAGE;
    d->asking = (struct vm_asking){.in = d->in, .fd = return_fd, .named = -1};
    if (vm_receiver_create(&d->receiver, d->in, page_fd, "channel of a vCPU", 1, &d->placed,
                           &d->stages, err) < 0) {
        return -1;
    }
    if (vm_sigbus_install(err) < 0) {
        vm_receiver_destroy(&d->receiver);
        return -1;
    }
    return 0;
}

void vm_delivery_close(struct vm_delivery *d)
{
    vm_sigbus_remove();
    vm_receiver_destroy(&d->receiver);
}

void vm_delivery_enter(struct vm_delivery *d)
{
    vm_sigbus_serve(serve, d);
}

void vm_delivery_leave(void)
{
    vm_sigbus_serve(NULL, NULL);
}

/* Where /proc is not there the thread goes on when the source has ended, which its owner sees to.
 */
static void stir_reader(int fd)
{
    char path[32];
    int writer;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    writer = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (writer >= 0) {
        /* A pipe without room has a reader that is not stopped. */
        while (write(writer, "", 1) < 0 && errno == EINTR) {
        }
        close(writer);
    }
}

void vm_deliveries_let_go(struct vm_incoming *in)
{
    vm_set_release(&in->over, 1);
    for (uint32_t i = 0; i < in->deliveries; i++) {
        vm_delivery_wake(&in->delivery[i]);
        stir_reader(in->delivery[i].page_fd);
    }
}

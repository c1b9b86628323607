/*
 * The destination. Before the flip vm_precopy_receive has it alone; while post-copy runs, its
 * threads share it:
 *
 *  - vm_fault_loop, one or several, reads userfaultfd and asks the source for pages; with an urgent
 *    channel (preempt) the first of them also places what comes back on it.
 *  - vm_listen_loop places what comes on the main channel: the background push and, without
 *    preempt, the urgent pages too.
 *
 * All end by quit_fd, an eventfd that is never read, so that it ends everybody.
 *
 * Where vCPUs serve themselves (delivery.h), a fault thread runs for the clients alone.
 */
#ifndef VM_INCOMING_H
#define VM_INCOMING_H

#include <pthread.h>
#include <stdint.h>

#include "error.h"
#include "events.h"
#include "prefetch.h"
#include "ram.h"
#include "uffd.h"
#include "wire.h"

struct vm_fault_stats {
    uint64_t messages;   /* page faults read from userfaultfd */
    uint64_t requests;   /* sent to the source: one a page */
    uint64_t shared;     /* faults on a page that was asked for already */
    uint64_t late;       /* faults on a page that had arrived meanwhile; woken */
    uint64_t spurious;   /* poll said there was something and there was nothing */
    uint64_t foreign;    /* events that are no page fault, faults outside every block */
    uint64_t of_clients; /* among messages: of client processes */
    uint64_t deferred;   /* requests that had to wait for room in the return path */
};

/* Pages that came along with answers; each counts as pushed or as zeros. */
struct vm_carried {
    uint64_t around;    /* from around a page that was asked for */
    uint64_t ahead;     /* from where a vCPU was going */
    uint64_t overtaken; /* of both: somebody came to wait for it while it was on its way */
};

/* The way of a page that was asked for; times are CLOCK_MONOTONIC, the same for all processes. */
struct vm_stage_record {
    uint64_t asked_ns;   /* the fault thread has read the fault */
    uint64_t queued_ns;  /* the source has read the request */
    uint64_t sent_ns;    /* the source begins to send the page */
    uint64_t arrived_ns; /* all of it is here */
    uint64_t placed_ns;  /* it is placed, and whoever waits is woken */
    uint64_t page;
    uint32_t block;
    uint32_t tid; /* who faulted first */
};

/* Written by one thread, read when it has ended. Without memory records are left out, and counted.
 */
struct vm_stages {
    struct vm_stage_record *record; /* owned */
    uint64_t count, capacity, lost;
};

/* Another process that has mapped a shared block and handed its userfaultfd over. */
struct vm_client {
    int uffd;
    uint32_t block;
    uint64_t base, size; /* its mapping of the block, from the block's start */
    /* As those of the guest, in memory that the client has mapped too. */
    uint32_t vcpus;
    const uint32_t *vcpu_tid;
    uint64_t *vcpu_faults;
    struct vm_walker *walker; /* a thread each, or NULL: no prefetch */
};

struct vm_delivery;

/* How far images are mapped ahead of what is copied from them. */
struct vm_image_ahead {
    uint32_t block;
    uint64_t offset;
};

/*
 * Two threads may listen to the main channel in turn: who has the turn reads, and passes it on
 * before it has pages mapped that carry no bytes, which is all the work there is with them.
 */
struct vm_listening {
    pthread_mutex_t turn;
    struct vm_image_ahead ahead; /* of who has the turn, as is the next */
    bool mapped_ahead;           /* nothing is left to be mapped */
    uint32_t over;               /* nothing is to be read any more */
    uint32_t placing; /* threads that have passed it on and have not placed their pages yet */
};

struct vm_incoming {
    struct vm_ram *ram;
    struct vm_event_log *log; /* NULL: no events are logged */
    uint64_t pending;         /* pages that were asked for and are not there; kept for the log */
    int uffd;
    int main_fd;   /* read end */
    int urgent_fd; /* read end, or -1: urgent pages come on the main channel */
    int return_fd; /* write end, non-blocking */
    int quit_fd;   /* eventfd: end now */
    int bell_fd;   /* eventfd that is rung when the last page is placed */
    /* vCPU threads by the thread id of their faults; count is set last. */
    uint32_t vcpus;
    uint32_t *vcpu_tid;
    uint64_t *vcpu_faults;
    struct vm_walker *walker; /* a vCPU each, or NULL: no prefetch */
    uint32_t fault_threads;
    uint32_t fault_running; /* of these, how many have begun to serve */
    uint32_t clients;
    struct vm_client *client;
    uint32_t deliveries;          /* vCPUs that serve themselves; 0: the fault threads do it */
    uint32_t delivery_waiters;    /* of these, who waits for a page that somebody else brings */
    uint32_t over;                /* none of them is to wait any longer */
    struct vm_delivery *delivery; /* one a vCPU */
    struct vm_fault_stats stats;
    struct vm_carried carried;
    struct vm_listening listening;
    struct vm_place_stats placed_main, placed_beside, placed_urgent;
    struct vm_stages stages_main, stages_urgent;
    uint64_t bytes_received;  /* payload in post-copy, on both channels */
    uint64_t bytes_precopied; /* payload before it */
    struct vm_header control; /* the message that ended vm_precopy_receive, its payload unread */
    uint64_t messages;        /* of pre-copy; a source that is alive sends some all the time */
    uint32_t rounds;          /* of pre-copy that have begun */
};

/* 0 when told to quit, -1 on failure. */
int vm_fault_loop(struct vm_incoming *in, uint32_t index, struct vm_error *err);
/* 0 when the source said that all is sent or when told to quit, -1 on failure. */
int vm_listen_loop(struct vm_incoming *in, struct vm_error *err);
/* The same beside it, by one thread more; only where there is a channel for urgent pages. */
int vm_listen_beside(struct vm_incoming *in, struct vm_error *err);

/* Pages of a block were placed: wake who waits for them in client processes. */
void vm_clients_wake(struct vm_incoming *in, uint32_t block, uint64_t offset, uint64_t length);
void vm_stages_release(struct vm_stages *stages);

/*
 * Pre-copy: read pages from the main channel straight into memory that is not registered yet, until
 * another message comes; its header is left in in->control. 0 then or when told to quit, -1 on
 * failure.
 */
int vm_precopy_receive(struct vm_incoming *in, struct vm_error *err);
/* Forget pre-copied pages: the memory of [offset, offset + length), whole host pages, was
 * discarded. */
void vm_precopy_forget(struct vm_ram *ram, uint32_t block, uint64_t offset, uint64_t length);
/*
 * The flip: what was pre-copied and not discarded counts as received. Returns the pages of a block
 * that are there only in part, which must not be.
 */
uint64_t vm_precopy_settle(struct vm_ram *ram, uint32_t block);

#endif

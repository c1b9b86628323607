#include <errno.h>
#include <poll.h>
#include <stdbool.h>

#include "incoming.h"
#include "receiver.h"
#include "scheduling.h"
#include "shared_in.h"
#include "util.h"

/* The next read, once there is something to read. An enum vm_received, or -1. */
static int listen_once(struct vm_receiver *r, struct vm_error *err)
{
    struct vm_listening *l = &r->in->listening;
    struct pollfd p[2] = {
        {.fd = r->fd, .events = POLLIN},
        {.fd = r->in->quit_fd, .events = POLLIN},
    };
    int found = poll(p, 2, l->mapped_ahead ? -1 : 0); /* while nothing comes */

    if (found == 0) {
        l->mapped_ahead = !vm_image_map_ahead(r->in->ram, &l->ahead);
        return VM_RECEIVED_NOTHING;
    }
    if (found < 0) {
        return errno == EINTR ? VM_RECEIVED_NOTHING
                              : vm_fail_errno(err, "poll of the main channel", 0);
    }
    return p[1].revents ? VM_RECEIVED_COMPLETE : vm_receiver_step(r, err);
}

/* 0, or -1. Who has read a part of something keeps the turn. */
static int listen_until_complete(struct vm_receiver *r, struct vm_error *err)
{
    struct vm_listening *l = &r->in->listening;
    int rc = 0;

    while (rc != VM_RECEIVED_COMPLETE && rc >= 0) {
        if (!r->has_turn) {
            pthread_mutex_lock(&l->turn);
            r->has_turn = true;
        }
        rc = vm_get(&l->over) ? VM_RECEIVED_COMPLETE : listen_once(r, err);
    }
    vm_set(&l->over, 1);
    if (r->has_turn) { /* not who has failed to place pages */
        pthread_mutex_unlock(&l->turn);
        r->has_turn = false;
    }
    return rc < 0 ? -1 : 0;
}

static int listen_with(struct vm_incoming *in, struct vm_place_stats *stats, struct vm_error *err)
{
    struct vm_receiver receiver;
    int rc;

    if (vm_receiver_create(&receiver, in, in->main_fd, "main channel", 0, stats, &in->stages_main,
                           err) < 0) {
        return -1;
    }
    if (in->urgent_fd >= 0) { /* else somebody waits for what comes here */
        vm_schedule_bulk();
    }
    rc = listen_until_complete(&receiver, err);
    vm_receiver_destroy(&receiver);
    return rc;
}

int vm_listen_loop(struct vm_incoming *in, struct vm_error *err)
{
    int rc;

    vm_event(in->log, VM_EVENT_LISTEN_THREAD_START, 0, 0, 0);
    rc = listen_with(in, &in->placed_main, err);
    vm_event(in->log, VM_EVENT_LISTEN_THREAD_EXIT, 0, 0, 0);
    return rc;
}

int vm_listen_beside(struct vm_incoming *in, struct vm_error *err)
{
    return listen_with(in, &in->placed_beside, err);
}

#include <errno.h>
#include <poll.h>
#include <stdbool.h>

#include "incoming.h"
#include "receiver.h"
#include "scheduling.h"
#include "shared_in.h"

static int listen_until_complete(struct vm_receiver *r, struct vm_error *err)
{
    struct pollfd p[2] = {
        {.fd = r->fd, .events = POLLIN},
        {.fd = r->in->quit_fd, .events = POLLIN},
    };
    struct vm_image_ahead ahead = {0};
    bool idle = true; /* there may be something to do while nothing comes */

    for (;;) {
        int rc, found = poll(p, 2, idle ? 0 : -1);

        if (found == 0) {
            idle = vm_image_map_ahead(r->in->ram, &ahead);
            continue;
        }
        if (found < 0) {
            if (errno == EINTR) {
                continue;
            }
            return vm_fail_errno(err, "poll of the main channel", 0);
        }
        if (p[1].revents) {
            return 0;
        }
        rc = vm_receiver_step(r, err);
        if (rc < 0 || rc == VM_RECEIVED_COMPLETE) {
            return rc < 0 ? -1 : 0;
        }
    }
}

int vm_listen_loop(struct vm_incoming *in, struct vm_error *err)
{
    struct vm_receiver receiver;
    int rc;

    if (vm_receiver_create(&receiver, in, in->main_fd, "main channel", 0, &in->placed_main,
                           &in->stages_main, err) < 0) {
        return -1;
    }
    if (in->urgent_fd >= 0) { /* else somebody waits for what comes here */
        vm_schedule_bulk();
    }
    vm_event(in->log, VM_EVENT_LISTEN_THREAD_START, 0, 0, 0);
    rc = listen_until_complete(&receiver, err);
    vm_event(in->log, VM_EVENT_LISTEN_THREAD_EXIT, 0, 0, 0);
    vm_receiver_destroy(&receiver);
    return rc;
}

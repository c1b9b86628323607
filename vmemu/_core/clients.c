/* Waking those who wait in client processes, each on a userfaultfd of its own. */
#include "incoming.h"
#include "util.h"

void vm_clients_wake(struct vm_incoming *in, uint32_t block, uint64_t offset, uint64_t length)
{
    struct vm_error ignored; /* a client that has ended needs no waking */

    for (uint32_t i = 0; i < in->clients; i++) {
        const struct vm_client *client = &in->client[i];

        if (client->block == block && offset < client->size) {
            vm_event(in->log, VM_EVENT_WAKE_SHARED, block, offset, client->base + offset);
            vm_uffd_wake(client->uffd, client->base + offset, length, &ignored);
        }
    }
}

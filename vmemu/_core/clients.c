/* Waking those who wait in client processes, each on a userfaultfd of its own. */
#include "incoming.h"
#include "util.h"

/* In a block that is the source's image a page is nobody's before it is mapped for him: to be woken
 * alone would be a minor fault again. */
static void go_on(const struct vm_client *client, const struct vm_block *block, uint64_t offset,
                  uint64_t length)
{
    struct vm_error ignored; /* a client that has ended needs no waking */
    struct vm_place_stats unused = {0};

    if (block->in_image) {
        vm_uffd_map_there(client->uffd, client->base + offset, length,
                          UINT64_C(1) << block->page_shift, &unused, &ignored);
    } else {
        vm_uffd_wake(client->uffd, client->base + offset, length, &ignored);
    }
}

void vm_clients_wake(struct vm_incoming *in, uint32_t block, uint64_t offset, uint64_t length)
{
    for (uint32_t i = 0; i < in->clients; i++) {
        const struct vm_client *client = &in->client[i];

        if (client->block == block && offset < client->size) {
            vm_event(in->log, VM_EVENT_WAKE_SHARED, block, offset, client->base + offset);
            go_on(client, &in->ram->block[block], offset, length);
        }
    }
}

#include "asking.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "util.h"
#include "wire.h"

/* 1 when sent, 0 when there is no room now, -1 on failure. A message is below PIPE_BUF: whole or
 * not at all. */
static int send_request(struct vm_asking *a, struct vm_request q, struct vm_error *err)
{
    const struct vm_block *block = &a->in->ram->block[q.block];
    struct {
        struct vm_header header;
        char name[VM_NAME_MAX + 1];
    } message = {.header = {
                     .type = VM_MSG_REQ_PAGES,
                     .block = q.block,
                     .offset = q.page << block->page_shift,
                     .pages = 1 + q.ahead,
                     .flags = q.ahead ? VM_FLAG_AHEAD : 0,
                     .stride = q.ahead ? q.stride : 0,
                 }};

    if (a->always_name || a->named != q.block) {
        message.header.type = VM_MSG_REQ_PAGES_ID;
        message.header.length = block->name_length;
        memcpy(message.name, block->name, block->name_length);
    }
    while (write(a->fd, &message, sizeof(message.header) + message.header.length) < 0) {
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
    a->named = q.block;
    vm_add(&a->in->stats.requests, 1);
    return 1;
}

void vm_ask_note(struct vm_incoming *in, struct vm_request q, uint32_t tid)
{
    struct vm_block *block = &in->ram->block[q.block];

    block->ask[q.page].ns = vm_now_ns();
    block->ask[q.page].tid = tid;
    if (VM_UNLIKELY(in->log)) {
        vm_event(in->log, VM_EVENT_PAGE_REQ_ADD, q.block, q.page << block->page_shift,
                 vm_add(&in->pending, 1) + 1);
    }
}

int vm_ask(struct vm_asking *a, struct vm_request q, struct vm_error *err)
{
    int sent = a->kept ? 0 : send_request(a, q, err);

    if (sent == 0) {
        a->keep[a->kept++] = q;
        vm_add(&a->in->stats.deferred, 1);
    }
    return sent < 0 ? -1 : 0;
}

int vm_ask_kept(struct vm_asking *a, struct vm_error *err)
{
    unsigned sent = 0;

    while (sent < a->kept) {
        int rc = send_request(a, a->keep[sent], err);

        if (rc < 0) {
            return -1;
        }
        if (rc == 0) {
            break;
        }
        sent++;
    }
    a->kept -= sent;
    memmove(a->keep, a->keep + sent, a->kept * sizeof(a->keep[0]));
    return 0;
}

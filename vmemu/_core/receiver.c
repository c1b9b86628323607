#include "receiver.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "shared_in.h"
#include "util.h"
#include "waiting.h"

enum { HEADER = sizeof(struct vm_header), BASE_PAGE = 4096 };

static uint64_t largest_page(const struct vm_ram *ram)
{
    uint64_t largest = BASE_PAGE;

    for (uint32_t i = 0; i < ram->count; i++) {
        uint64_t size = UINT64_C(1) << ram->block[i].page_shift;

        largest = size > largest ? size : largest;
    }
    return largest;
}

/* With mixed pages more than the smallest would read into the messages behind. */
static uint64_t smallest_page(const struct vm_ram *ram)
{
    uint64_t smallest = UINT64_MAX;

    for (uint32_t i = 0; i < ram->count; i++) {
        uint64_t size = UINT64_C(1) << ram->block[i].page_shift;

        smallest = size < smallest ? size : smallest;
    }
    return smallest;
}

int vm_receiver_create(struct vm_receiver *r, struct vm_incoming *in, int fd, const char *name,
                       int eager, struct vm_place_stats *stats, struct vm_stages *stages,
                       struct vm_error *err)
{
    uint64_t page = largest_page(in->ram);
    uint64_t payload = page > VM_RUN_BYTES ? page : VM_RUN_BYTES;

    memset(r, 0, sizeof(*r));
    r->in = in;
    r->fd = fd;
    r->name = name;
    r->stats = stats;
    r->stages = stages;
    r->eager = eager ? HEADER + smallest_page(in->ram) : HEADER;
    /* One page before the payload holds its header, one behind it the header that follows. */
    r->map_length = payload + 2 * BASE_PAGE;
    r->map = mmap(NULL, r->map_length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    r->zeros_length = page;
    /* Populated: UFFDIO_COPY into a 1 GiB page fails with ENOMEM when its source is not mapped. */
    r->zeros = mmap(NULL, page, PROT_READ,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_POPULATE, -1, 0);
    if (r->map == MAP_FAILED || r->zeros == MAP_FAILED) {
        vm_fail_errno(err, "mmap of a staging area", 0);
        vm_receiver_destroy(r);
        return -1;
    }
    r->start = r->map + BASE_PAGE - HEADER;
    r->capacity = HEADER + payload + HEADER;
    return 0;
}

void vm_receiver_destroy(struct vm_receiver *r)
{
    if (r->map && r->map != MAP_FAILED) {
        munmap(r->map, r->map_length);
    }
    if (r->zeros && r->zeros != MAP_FAILED) {
        munmap(r->zeros, r->zeros_length);
    }
    r->map = r->zeros = NULL;
}

static int refuse(const struct vm_receiver *r, const struct vm_header *h, const char *why,
                  struct vm_error *err)
{
    return vm_fail_protocol(
        err, r->name, "message type %u for block %u, offset %#llx, %u pages, %u bytes: %s", h->type,
        h->block, (unsigned long long)h->offset, h->pages, h->length, why);
}

/* Everything that placing relies on. Nothing is allocated or touched on a peer's word. */
static int check_pages(const struct vm_receiver *r, const struct vm_header *h, struct vm_error *err)
{
    const struct vm_ram *ram = r->in->ram;
    const struct vm_block *block;
    uint64_t first;

    if (h->block >= ram->count) {
        return refuse(r, h, "no such block", err);
    }
    block = &ram->block[h->block];
    first = h->offset >> block->page_shift;
    if (h->offset != first << block->page_shift) {
        return refuse(r, h, "the offset is no whole number of the block's pages", err);
    }
    if (h->pages == 0 || first >= block->pages || h->pages > block->pages - first) {
        return refuse(r, h, "pages outside the block", err);
    }
    if (h->type != VM_MSG_PAGES) {
        return h->length == 0
                   ? 0
                   : refuse(r, h,
                            h->type == VM_MSG_ZERO ? "zero pages carry no bytes"
                                                   : "pages that go another way carry no bytes",
                            err);
    }
    if (vm_block_shares(block) != !!(h->flags & VM_FLAG_IN_IMAGE)) {
        return refuse(r, h, "the bytes of this block come another way", err);
    }
    if (h->flags & VM_FLAG_IN_IMAGE) {
        return h->length == 0 ? 0 : refuse(r, h, "what lies in the image carries no bytes", err);
    }
    if (h->length != (uint64_t)h->pages << block->page_shift) {
        return refuse(r, h, "the length is not that of the pages", err);
    }
    return h->length <= r->capacity - 2 * HEADER ? 0 : refuse(r, h, "the run is too long", err);
}

static int check_header(const struct vm_receiver *r, const struct vm_header *h,
                        struct vm_error *err)
{
    switch (h->type) {
    case VM_MSG_PAGES:
    case VM_MSG_ZERO:
    case VM_MSG_ELSEWHERE:
        return check_pages(r, h, err);
    case VM_MSG_COMPLETE:
        return h->length == 0 ? 0 : refuse(r, h, "completion carries no bytes", err);
    case VM_MSG_FAILED:
        return h->length < BASE_PAGE ? 0 : refuse(r, h, "the reason is too long", err);
    default:
        return refuse(r, h, "not expected here", err);
    }
}

/* Zeros: hugetlb has no ZEROPAGE, there a page of zeros is copied. */
static int place_zeros(struct vm_receiver *r, const struct vm_block *block, uint64_t host,
                       uint64_t length, struct vm_error *err)
{
    uint64_t page_size = UINT64_C(1) << block->page_shift;

    if (!block->hugetlb) {
        return vm_uffd_zeropage(r->in->uffd, host, length, page_size, r->stats, err);
    }
    for (uint64_t done = 0; done < length; done += page_size) {
        int rc =
            vm_uffd_copy(r->in->uffd, host + done, r->zeros, page_size, page_size, r->stats, err);

        if (rc != 0) {
            return rc;
        }
    }
    return 0;
}

/* As vm_uffd_copy. */
static int place_run(struct vm_receiver *r, const struct vm_header *h, const uint8_t *payload,
                     struct vm_error *err)
{
    const struct vm_block *block = &r->in->ram->block[h->block];
    uint64_t page_size = UINT64_C(1) << block->page_shift, host = block->host + h->offset;

    if (block->in_image || (h->type == VM_MSG_PAGES && block->image)) {
        return vm_image_place(r->in->uffd, block, h, r->stats, err);
    }
    if (h->type == VM_MSG_ZERO) {
        return place_zeros(r, block, host, h->pages * page_size, err);
    }
    return vm_uffd_copy(r->in->uffd, host, payload, h->length, page_size, r->stats, err);
}

static void count_placed(struct vm_receiver *r, const struct vm_header *h, uint64_t fresh)
{
    if (h->type == VM_MSG_PAGES) {
        *(r->in->ram->block[h->block].in_image ? &r->stats->continued : &r->stats->copied) += fresh;
    }
}

static void count_arrival(struct vm_block *block, const struct vm_header *h, uint64_t fresh)
{
    if (h->type == VM_MSG_ZERO) {
        vm_add(&block->arrived.zero, fresh);
    } else if (h->flags & VM_FLAG_URGENT) {
        vm_add(&block->arrived.requested, fresh);
    } else {
        vm_add(&block->arrived.pushed, fresh);
    }
}

/* What nobody had asked the source for. Before the bits: whose request was on its way meanwhile is
 * no longer seen behind them. */
static void count_carried(struct vm_incoming *in, const struct vm_header *h)
{
    const struct vm_block *block = &in->ram->block[h->block];
    uint64_t first = h->offset >> block->page_shift, overtaken = 0;

    if (VM_LIKELY(!(h->flags & (VM_FLAG_AROUND | VM_FLAG_AHEAD)))) {
        return;
    }
    for (uint64_t page = first; page < first + h->pages; page++) {
        overtaken += vm_bit_test(block->requested, page);
    }
    vm_add(h->flags & VM_FLAG_AHEAD ? &in->carried.ahead : &in->carried.around, h->pages);
    vm_add(&in->carried.overtaken, overtaken);
}

/* A run that answers a request is one page. */
static void record_stages(struct vm_receiver *r, const struct vm_header *h, uint64_t arrived_ns,
                          uint64_t placed_ns)
{
    const struct vm_block *block = &r->in->ram->block[h->block];
    struct vm_stages *s = r->stages;
    uint64_t page = h->offset >> block->page_shift;

    if (s->count == s->capacity) {
        uint64_t capacity = s->capacity ? 2 * s->capacity : 1024;
        void *grown = realloc(s->record, capacity * sizeof(*s->record));

        if (!grown) {
            s->lost++;
            return;
        }
        s->record = grown;
        s->capacity = capacity;
    }
    s->record[s->count++] = (struct vm_stage_record){
        .asked_ns = vm_get(&block->ask[page].ns),
        .queued_ns = h->queued_ns,
        .sent_ns = h->sent_ns,
        .arrived_ns = arrived_ns,
        .placed_ns = placed_ns,
        .page = page,
        .block = h->block,
        .tid = vm_get(&block->ask[page].tid),
    };
}

void vm_stages_release(struct vm_stages *stages)
{
    free(stages->record);
    stages->record = NULL;
    stages->count = stages->capacity = 0;
}

/* Whether the log has the arrival of a page; from now on it does. A page may come by both channels,
 * even at one time. */
static bool told(const struct vm_block *block, uint64_t page)
{
    return __atomic_exchange_n(&block->ask[page].told, 1, __ATOMIC_RELAXED);
}

static void log_arrival(struct vm_incoming *in, uint32_t index, uint64_t page, uint64_t placed_ns)
{
    const struct vm_block *block = &in->ram->block[index];

    if (vm_bit_test(block->requested, page)) {
        vm_event_at(in->log, placed_ns, VM_EVENT_PAGE_REQ_DEL, index, page << block->page_shift,
                    vm_add(&in->pending, -1) - 1);
    }
}

/* Before the bits: so a page is logged as placed before anybody can say that it is there. */
static void log_placed(struct vm_incoming *in, const struct vm_header *h, uint64_t placed_ns)
{
    const struct vm_block *block = &in->ram->block[h->block];
    uint64_t first = h->offset >> block->page_shift, last = first + h->pages, begin, page = first;
    int name = h->type == VM_MSG_ZERO ? VM_EVENT_PLACE_PAGE_ZERO : VM_EVENT_PLACE_PAGE;

    if (VM_LIKELY(!in->log)) {
        return;
    }
    while (page < last) {
        for (begin = page; page < last && !told(block, page); page++) {
            log_arrival(in, h->block, page, placed_ns);
        }
        if (page > begin) {
            vm_event_at(in->log, placed_ns, name, h->block, begin << block->page_shift,
                        page - begin);
        }
        page++;
    }
}

/* The push was faster. Who waited was woken when the page was placed, or will be by its fault. */
static bool overtaken(const struct vm_block *block, const struct vm_header *h)
{
    return h->flags & VM_FLAG_URGENT && h->pages == 1 &&
           vm_bit_test(block->received, h->offset >> block->page_shift);
}

static int place_pages(struct vm_receiver *r, const struct vm_header *h, const uint8_t *payload,
                       struct vm_error *err)
{
    struct vm_incoming *in = r->in;
    struct vm_block *block = &in->ram->block[h->block];
    uint64_t page_size = UINT64_C(1) << block->page_shift;
    uint64_t host = block->host + h->offset;
    uint64_t arrived_ns = vm_now_ns(), placed_ns, fresh;
    int rc;

    if (overtaken(block, h)) {
        return 0;
    }
    rc = place_run(r, h, payload, err);
    if (rc > 0 && vm_ram_complete(in->ram)) {
        return 0; /* a second copy, that is still on its way when all is given back */
    }
    if (rc != 0) {
        /* The mapping is gone only when somebody is giving it all back. */
        return rc < 0 ? -1 : vm_fail_errno(err, "placing pages in a mapping that is gone", host);
    }
    placed_ns = vm_now_ns();
    log_placed(in, h, placed_ns);
    count_carried(in, h);
    fresh = vm_ram_mark_received(block, h->offset >> block->page_shift, h->pages);
    count_arrival(block, h, fresh);
    count_placed(r, h, fresh);
    if (fresh && h->flags & VM_FLAG_URGENT) {
        record_stages(r, h, arrived_ns, placed_ns);
    }
    /* After the bits: a client that looks at them later finds the page by itself. */
    vm_clients_wake(in, h->block, h->offset, (uint64_t)h->pages * page_size);
    vm_deliveries_wake(in, h->block, h->offset >> block->page_shift, h->pages);
    vm_add(&in->bytes_received, h->type == VM_MSG_ZERO ? 0 : fresh * page_size);
    if (vm_ram_count_received(in->ram, fresh)) {
        eventfd_write(in->bell_fd, 1);
    }
    return 0;
}

static void note_answer(struct vm_receiver *r, const struct vm_header *h)
{
    uint64_t first = h->offset >> r->in->ram->block[h->block].page_shift;

    if (h->block == r->awaited.block && r->awaited.page - first < h->pages) {
        r->awaits = false;
    }
}

/* Only where all of the message is read and nothing behind it; stages have no lock of their own. */
static bool may_pass_turn(const struct vm_receiver *r, const struct vm_header *h)
{
    return r->has_turn && r->have == HEADER && h->flags & VM_FLAG_IN_IMAGE &&
           !(h->flags & VM_FLAG_URGENT) && r->in->ram->block[h->block].in_image;
}

static int place_in_turn(struct vm_receiver *r, const struct vm_header *h, struct vm_error *err)
{
    struct vm_listening *l = &r->in->listening;
    int rc;

    vm_add(&l->placing, 1);
    r->has_turn = false;
    pthread_mutex_unlock(&l->turn);
    rc = place_pages(r, h, NULL, err);
    __atomic_sub_fetch(&l->placing, 1, __ATOMIC_RELEASE);
    return rc;
}

/* A whole message lies at start. An enum vm_received, or -1. */
static int handle_message(struct vm_receiver *r, const struct vm_header *h, struct vm_error *err)
{
    const uint8_t *payload = r->start + HEADER;

    if (h->type == VM_MSG_COMPLETE) {
        return VM_RECEIVED_COMPLETE;
    }
    if (h->type == VM_MSG_ELSEWHERE) {
        note_answer(r, h);
        return VM_RECEIVED_MORE;
    }
    if (h->type == VM_MSG_FAILED) {
        char reason[120];

        snprintf(reason, sizeof(reason), "the source gave up: %.*s", (int)h->length,
                 (const char *)payload);
        return vm_fail_gone(err, r->name, reason);
    }
    note_answer(r, h);
    return may_pass_turn(r, h) ? place_in_turn(r, h, err) : place_pages(r, h, payload, err);
}

/*
 * How much to read next. Never past the header behind the current message: so the payload always
 * begins on a page boundary and nothing but a header is ever moved to the front (but for the eager
 * case, where a message without bytes may be followed by one that has been read along).
 */
static uint64_t wanted(const struct vm_receiver *r)
{
    struct vm_header h;

    if (r->have < HEADER) {
        return r->eager - r->have;
    }
    memcpy(&h, r->start, HEADER);
    return HEADER + h.length + HEADER - r->have;
}

/* At the end of a channel; another thread may still be placing the last pages. */
static bool all_came(const struct vm_receiver *r)
{
    while (vm_get_acquire(&r->in->listening.placing) > 0) {
        sched_yield();
    }
    return vm_ram_complete(r->in->ram);
}

/* An enum vm_received, or -1. */
static int read_some(struct vm_receiver *r, struct vm_error *err)
{
    ssize_t got = read(r->fd, r->start + r->have, wanted(r));

    if (got > 0) {
        r->have += (uint64_t)got;
        return VM_RECEIVED_MORE;
    }
    if (got == 0 && all_came(r)) {
        return VM_RECEIVED_COMPLETE;
    }
    if (got == 0) {
        return vm_fail_gone(err, r->name,
                            "the source closed the channel before all pages were sent");
    }
    return errno == EINTR || errno == EAGAIN ? VM_RECEIVED_NOTHING : vm_fail_errno(err, r->name, 0);
}

int vm_receiver_step(struct vm_receiver *r, struct vm_error *err)
{
    int got = read_some(r, err);

    if (got != VM_RECEIVED_MORE) {
        return got;
    }
    while (r->have >= HEADER) {
        struct vm_header h;
        uint64_t whole;
        int rc;

        memcpy(&h, r->start, HEADER);
        if (check_header(r, &h, err) < 0) {
            return -1;
        }
        whole = HEADER + (uint64_t)h.length;
        if (r->have < whole) {
            return VM_RECEIVED_MORE;
        }
        rc = handle_message(r, &h, err);
        if (rc != VM_RECEIVED_MORE) {
            return rc;
        }
        r->have -= whole;
        memmove(r->start, r->start + whole, r->have);
    }
    return VM_RECEIVED_MORE;
}

/*
 * The messages on every channel, in both directions: this header, then `length` bytes. All numbers
 * are little-endian; the table in protocol.py says the same and is checked against this file.
 *
 *   byte  0  u16 type      enum vm_message
 *         2  u16 flags     VM_FLAG_*
 *         4  u32 block     index in the table that the source announced
 *         8  u64 offset    first byte in the block; whole host pages
 *        16  u32 pages     host pages that are meant; target pages (4 KiB) in pre-copy
 *        20  u32 length    bytes that follow
 *        24  u64 queued    when the source read the request that this answers, ns, or 0
 *            i64 stride    of a request with VM_FLAG_AHEAD: from one page to the next, in pages
 *        32  u64 sent      when it began to send the answer, ns, or 0; both CLOCK_MONOTONIC
 */
#ifndef VM_WIRE_H
#define VM_WIRE_H

#include <stdint.h>
#include <sys/types.h>

enum vm_message {
    /* source to destination */
    VM_MSG_HELLO = 1,         /* the source is up: table of blocks follows */
    VM_MSG_PRECOPY_PAGES = 2, /* pre-copy: `pages` target pages follow */
    VM_MSG_PRECOPY_ZERO = 3,  /* pre-copy: the target pages are zeros */
    VM_MSG_ROUND = 4,         /* pre-copy is in round number `pages`; also a sign of life */
    VM_MSG_FLIP = 5,          /* pre-copy is over, the vCPUs have stopped: where, follows */
    VM_MSG_DISCARD = 6,       /* forget these ranges of a block */
    VM_MSG_LISTEN = 7,        /* from here on pages may come in any order */
    VM_MSG_RUN = 8,           /* the guest may run */
    VM_MSG_PAGES = 9,         /* pages * page size bytes follow */
    VM_MSG_ZERO = 10,         /* the pages are zeros, nothing follows */
    VM_MSG_COMPLETE = 11,     /* every page was sent, on this channel or on the urgent one */
    VM_MSG_FAILED = 12,    /* the source gives up; the reason follows, `pages` is its exit code */
    VM_MSG_ELSEWHERE = 15, /* on the channel of a vCPU: the page was sent on another channel */
    /* destination to source: the return path */
    VM_MSG_ADVISE = 16,       /* blocks and page sizes agree, memory is empty: ours follow */
    VM_MSG_REQ_PAGES = 17,    /* of the block that was named last */
    VM_MSG_REQ_PAGES_ID = 18, /* of the block whose name follows */
    VM_MSG_PUSH = 19,         /* begin the background push now */
    VM_MSG_SHUT = 20,         /* the destination needs nothing more; `pages` is 1 after an error */
};

enum {
    VM_FLAG_URGENT = 1,   /* this answers a request */
    VM_FLAG_IN_IMAGE = 2, /* the bytes lie in the image that both ends have mapped: none follow */
    /* Nobody has asked for this: it came along with an answer, from around the page, */
    VM_FLAG_AROUND = 4,
    /* or from where a vCPU is going. In a request: somebody waits for the first page alone. */
    VM_FLAG_AHEAD = 8,
};

struct vm_header {
    uint16_t type;
    uint16_t flags;
    uint32_t block;
    uint64_t offset;
    uint32_t pages;
    uint32_t length;
    union {
        uint64_t queued_ns;
        int64_t stride;
    };
    uint64_t sent_ns;
};

_Static_assert(sizeof(struct vm_header) == 40, "the header has no padding");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "headers are written as they lie in memory");

/* How much one message may carry: one page if pages are larger. It keeps a run inside a CPU's
 * cache. */
#define VM_RUN_BYTES (UINT32_C(256) << 10)

/* Write all of header and payload, waiting when the descriptor is full; 0, or -1 with errno. */
int vm_wire_send(int fd, const struct vm_header *header, const void *payload);
/*
 * The same for memory that is never written again: a pipe then holds its pages and no copy of
 * them, until they are read. They may be unmapped meanwhile.
 */
int vm_wire_lend(int fd, const struct vm_header *header, const void *payload);

#endif

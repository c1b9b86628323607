/* The event log as a file: JSON lines, or the text of QEMU's log backend. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "events.h"

enum { TARGET_PAGE_SHIFT = 12, BUFFER = 1 << 16, PIECE_MAX = 8192 };

struct writer {
    int fd;
    int format;
    int failed; /* errno of the first write that failed */
    size_t used;
    /* Blocktime until the event at hand, as QEMU's _end event tells it. */
    uint32_t vcpus, stopped;
    uint64_t all_stopped_since, overlapped_ns;
    char buffer[BUFFER];
};

/* An event with what is needed to say it. */
struct line {
    const struct vm_event_side *side;
    struct vm_event event;
};

/* ---- bytes ---- */

static void flush(struct writer *w)
{
    size_t done = 0;

    while (done < w->used && !w->failed) {
        ssize_t n = write(w->fd, w->buffer + done, w->used - done);

        if (n >= 0) {
            done += (size_t)n;
        } else if (errno != EINTR) {
            w->failed = errno;
        }
    }
    w->used = 0;
}

/* Room for a piece of at most PIECE_MAX. */
static char *room(struct writer *w)
{
    if (w->used > BUFFER - PIECE_MAX) {
        flush(w);
    }
    return w->buffer + w->used;
}

static void put(struct writer *w, const char *text, size_t length)
{
    memcpy(room(w), text, length);
    w->used += length;
}

static void put_text(struct writer *w, const char *text)
{
    put(w, text, strlen(text));
}

static void put_number(struct writer *w, uint64_t value, unsigned base)
{
    char digits[20];
    unsigned n = 0;

    do {
        digits[sizeof(digits) - ++n] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    put(w, digits + sizeof(digits) - n, n);
}

static void put_signed(struct writer *w, int64_t value)
{
    if (value < 0) {
        put(w, "-", 1);
    }
    put_number(w, value < 0 ? 0 - (uint64_t)value : (uint64_t)value, 10);
}

/* Length of the well-formed UTF-8 sequence at s, or 0. s ends with a NUL, so no byte behind is
 * read. */
static unsigned utf8_length(const unsigned char *s)
{
    unsigned n = s[0] < 0x80                   ? 1
                 : s[0] >= 0xC2 && s[0] < 0xE0 ? 2
                 : s[0] >= 0xE0 && s[0] < 0xF0 ? 3
                 : s[0] >= 0xF0 && s[0] < 0xF5 ? 4
                                               : 0;

    for (unsigned i = 1; i < n; i++) {
        if ((s[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    if ((s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xED && s[1] > 0x9F) ||
        (s[0] == 0xF0 && s[1] < 0x90) || (s[0] == 0xF4 && s[1] > 0x8F)) {
        return 0; /* overlong, a surrogate, or beyond the last character */
    }
    return n;
}

/* A name may be any bytes; what comes out is valid JSON, and a text line stays one line. */
static void put_name(struct writer *w, const char *name)
{
    const unsigned char *s = (const unsigned char *)name;

    while (*s) {
        unsigned n = utf8_length(s);

        if (n == 0) {
            put_text(w, "\xEF\xBF\xBD"); /* the replacement character */
            n = 1;
        } else if (*s < 0x20 && w->format == VM_EVENTS_TEXT) {
            put(w, "?", 1);
        } else if (*s < 0x20) {
            put_text(w, *s < 0x10 ? "\\u000" : "\\u001");
            put_number(w, *s & 15, 16);
        } else {
            if (w->format == VM_EVENTS_JSON && (*s == '"' || *s == '\\')) {
                put(w, "\\", 1);
            }
            put(w, (const char *)s, n);
        }
        s += n;
    }
}

/* ---- values ---- */

static const struct vm_event_block *block_of(const struct line *l)
{
    static const struct vm_event_block unknown = {.name = "?"};

    return l->event.block < l->side->blocks ? &l->side->block[l->event.block] : &unknown;
}

/* Where a block begins in all of RAM: blocks lie there one behind the other. */
static uint64_t ram_offset(const struct line *l)
{
    uint64_t offset = 0;

    for (uint32_t i = 0; i < l->event.block && i < l->side->blocks; i++) {
        offset += l->side->block[i].size;
    }
    return offset;
}

static uint64_t number(const struct writer *w, const struct line *l, char source)
{
    const struct vm_event *e = &l->event;
    uint64_t host = block_of(l)->host, start = l->side->log->start_ns;

    switch (source) {
    case 'a':
        return e->a;
    case 'b':
        return e->b;
    case 'l':
        return (uint64_t)(int32_t)(uint32_t)e->b;
    case 'u':
        return (uint64_t)(int32_t)(uint32_t)(e->b >> 32);
    case 'o':
        return ram_offset(l);
    case 'h':
        return host ? host + e->a : 0;
    case 'r':
        return e->b * block_of(l)->page_size;
    case 'g':
        return e->a >> TARGET_PAGE_SHIFT;
    case 'm':
        return (e->t_ns > start ? e->t_ns - start : 0) / 1000000;
    case 't':
        return w->overlapped_ns / 1000000;
    case 'k':
        return l->side->log->vcpus;
    case '1':
        return 1;
    default:
        return 0;
    }
}

static void put_string(struct writer *w, const struct line *l, char source)
{
    const char *word;

    switch (source) {
    case 'n':
        put_name(w, block_of(l)->name);
        break;
    case 'w':
        word = l->event.a < VM_WORD_COUNT ? vm_event_word((uint32_t)l->event.a) : NULL;
        put_text(w, word ? word : "?");
        break;
    case 'c':
        put_text(w, "client");
        put_number(w, l->event.b, 10);
        break;
    default:
        put_text(w, l->side->side == VM_SIDE_SOURCE ? "source" : "destination");
    }
}

/* ---- fields ---- */

struct field {
    const char *name;
    size_t length;
    char source, form;
};

/* A field is {name:SC}. Returns where it ends. */
static const char *parse_field(const char *text, struct field *f)
{
    const char *colon = strchr(text, ':');

    f->name = text + 1;
    f->length = (size_t)(colon - f->name);
    f->source = colon[1];
    f->form = colon[2];
    return colon + 4;
}

static void put_field_text(struct writer *w, const struct line *l, const struct field *f)
{
    if (f->form == 's') {
        put_string(w, l, f->source);
    } else if (f->form == 'd') {
        put_signed(w, (int64_t)number(w, l, f->source));
    } else {
        put_text(w, f->form == 'p' ? "0x" : "");
        put_number(w, number(w, l, f->source), f->form == 'u' ? 10 : 16);
    }
}

static void put_text_fields(struct writer *w, const struct line *l, const char *text)
{
    while (*text) {
        size_t literal = strcspn(text, "{");
        struct field f;

        put(w, text, literal);
        text += literal;
        if (*text) {
            text = parse_field(text, &f);
            put_field_text(w, l, &f);
        }
    }
}

static void put_json_fields(struct writer *w, const struct line *l, const char *text)
{
    while ((text = strchr(text, '{'))) {
        struct field f;

        text = parse_field(text, &f);
        put_text(w, ",\"");
        put(w, f.name, f.length);
        put_text(w, "\":");
        if (f.form == 's') {
            put(w, "\"", 1);
            put_string(w, l, f.source);
            put(w, "\"", 1);
        } else if (f.form == 'd') {
            put_signed(w, (int64_t)number(w, l, f.source));
        } else {
            put_number(w, number(w, l, f.source), 10);
        }
    }
}

/* ---- lines ---- */

static void put_json_line(struct writer *w, const struct line *l, const struct vm_event_kind *kind)
{
    put_text(w, "{\"t_ns\":");
    put_number(w, l->event.t_ns, 10);
    put_text(w, ",\"tid\":");
    put_number(w, l->event.tid, 10);
    put_text(w, ",\"side\":\"");
    put_text(w, l->side->side == VM_SIDE_SOURCE ? "source" : "destination");
    put_text(w, "\",\"event\":\"");
    put_text(w, kind->name);
    put(w, "\"", 1);
    put_json_fields(w, l, kind->text);
    put_json_fields(w, l, kind->extra);
    put_text(w, "}\n");
}

static void put_text_line(struct writer *w, const struct line *l, const struct vm_event_kind *kind)
{
    uint64_t us = l->event.t_ns / 1000;
    char fraction[16];

    put_number(w, l->event.tid, 10);
    put(w, "@", 1);
    put_number(w, us / 1000000, 10);
    snprintf(fraction, sizeof(fraction), ".%06u:", (unsigned)(us % 1000000));
    put_text(w, fraction);
    put_text(w, kind->name);
    put(w, " ", 1); /* QEMU's format strings leave it there without arguments too */
    put_text_fields(w, l, kind->text);
    put(w, "\n", 1);
}

static void put_line(struct writer *w, struct line *l)
{
    const struct vm_event_kind *kind = vm_event_kind(l->event.id);
    uint64_t page_size = block_of(l)->page_size, pages;

    if (w->format == VM_EVENTS_JSON) {
        put_json_line(w, l, kind);
        return;
    }
    pages = kind->run && page_size ? l->event.b : 1;
    for (uint64_t i = 0; i < pages && !w->failed; i++) {
        put_text_line(w, l, kind);
        l->event.a += page_size;
    }
}

static void follow_blocktime(struct writer *w, const struct vm_event *e)
{
    if (e->id == VM_EVENT_BLOCKTIME_BEGIN && !(e->b >> 32)) {
        if (++w->stopped == w->vcpus) {
            w->all_stopped_since = e->t_ns;
        }
    } else if (e->id == VM_EVENT_BLOCKTIME_END && w->stopped > 0) {
        if (w->stopped-- == w->vcpus) {
            w->overlapped_ns += e->t_ns - w->all_stopped_since;
        }
    }
}

/* ---- order ---- */

struct place {
    uint64_t t_ns;
    uint32_t slot, side;
};

static int earlier(const void *a, const void *b)
{
    const struct place *x = a, *y = b;

    if (x->t_ns != y->t_ns) {
        return x->t_ns < y->t_ns ? -1 : 1;
    }
    if (x->side != y->side) {
        return x->side < y->side ? -1 : 1;
    }
    return x->slot < y->slot ? -1 : x->slot > y->slot;
}

static uint64_t gather(const struct vm_event_side *side, uint32_t sides, struct place *place)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < sides; i++) {
        uint64_t written = vm_event_log_written(side[i].log);

        for (uint64_t slot = 0; slot < written; slot++) {
            const struct vm_event *e = &side[i].log->event[slot];

            if (vm_event_kind(vm_get_acquire(&e->id))) {
                place[n++] = (struct place){.t_ns = e->t_ns, .slot = (uint32_t)slot, .side = i};
            }
        }
    }
    qsort(place, n, sizeof(*place), earlier);
    return n;
}

static void put_heads(struct writer *w, const struct vm_event_side *side, uint32_t sides)
{
    uint64_t first = UINT64_MAX;

    for (uint32_t i = 0; i < sides; i++) {
        first = side[i].log->start_ns < first ? side[i].log->start_ns : first;
    }
    for (uint32_t i = 0; i < sides; i++) {
        const struct vm_event_log *log = side[i].log;
        struct line head = {.side = &side[i],
                            .event = {.t_ns = first,
                                      .tid = log->pid,
                                      .id = VM_EVENT_LOG,
                                      .a = vm_event_log_written(log),
                                      .b = vm_event_log_lost(log)}};

        put_line(w, &head);
        w->vcpus = log->vcpus ? log->vcpus : w->vcpus;
    }
}

int vm_events_write(const struct vm_event_side *side, uint32_t sides, int fd, int format,
                    struct vm_error *err)
{
    struct writer *w = calloc(1, sizeof(*w));
    struct place *place;
    uint64_t most = 0, n;
    int failed;

    for (uint32_t i = 0; i < sides; i++) {
        most += vm_event_log_written(side[i].log);
    }
    place = malloc((most + 1) * sizeof(*place));
    if (!w || !place) {
        free(w);
        free(place);
        errno = ENOMEM;
        return vm_fail_errno(err, "memory to sort the event log", 0);
    }
    n = gather(side, sides, place);
    w->fd = fd;
    w->format = format;
    put_heads(w, side, sides);
    for (uint64_t i = 0; i < n && !w->failed; i++) {
        struct line l = {.side = &side[place[i].side]};

        l.event = l.side->log->event[place[i].slot];
        follow_blocktime(w, &l.event);
        put_line(w, &l);
    }
    flush(w);
    failed = w->failed;
    free(w);
    free(place);
    errno = failed;
    return failed ? vm_fail_errno(err, "write of the event log", 0) : 0;
}

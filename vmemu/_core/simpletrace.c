#include "simpletrace.h"

enum {
    TYPE = 8,
    NAME_HEAD = 12,   /* event, length */
    RECORD_HEAD = 24, /* event, time, length, process */
    MAX_NAME = 1 << 12,
    MAX_RECORD = 1 << 18, /* QEMU's own buffer: no record is longer */
};

static uint64_t little_endian(const char *at, size_t bytes)
{
    uint64_t value = 0;

    for (size_t i = bytes; i-- > 0;) {
        value = value << 8 | (uint8_t)at[i];
    }
    return value;
}

/* Bytes of the record behind its type, 0 if there are too few to say, or a damaged one. */
static uint64_t record_length(struct vm_simpletrace *s, const char *at, size_t left, bool name)
{
    uint64_t head = name ? NAME_HEAD : RECORD_HEAD, length;

    if (left < head) {
        return 0;
    }
    length = little_endian(at + (name ? 8 : 16), 4);
    s->damaged = name ? length > MAX_NAME : length < RECORD_HEAD || length > MAX_RECORD;
    return s->damaged ? 0 : name ? NAME_HEAD + length : length;
}

size_t vm_simpletrace_split(struct vm_simpletrace *s, const char *bytes, size_t length)
{
    size_t at = 0, type_size = s->typed ? TYPE : 0;

    s->count = 0;
    s->damaged = false;
    while (s->count < s->capacity && length - at >= type_size) {
        uint64_t type = s->typed ? little_endian(bytes + at, TYPE) : 1;
        size_t left = length - at - type_size;
        uint64_t size;

        if (type > 1) {
            s->damaged = true;
            break;
        }
        size = record_length(s, bytes + at + type_size, left, type == 0);
        if (size == 0 || size > left) {
            break;
        }
        s->starts[s->count++] = (uint32_t)at;
        at += type_size + size;
    }
    return at;
}

/*
 * A line has a value for each column that the header has named; which means what is told to
 * vm_csv_begin and kept in the parser's memory. A value may stand in quotes and between spaces.
 */
#include "csv.h"

#include <string.h>
#include <strings.h>

#include "line.h"

/* struct vm_text's memory, as this format uses it. */
struct csv_memory {
    char separator;
    uint8_t columns;
    uint8_t role[VM_CSV_COLUMNS];
};

_Static_assert(sizeof(struct csv_memory) <= sizeof(((struct vm_text *)0)->memory), "it must fit");

struct field {
    const char *at, *end;
};

struct word {
    const char *text;
    int value;
};

static const struct word kinds[] = {
    {"load", VM_LOAD},    {"read", VM_LOAD},     {"r", VM_LOAD},   {"l", VM_LOAD},
    {"ld", VM_LOAD},      {"rd", VM_LOAD},       {"0", VM_LOAD},   {"store", VM_STORE},
    {"write", VM_STORE},  {"w", VM_STORE},       {"s", VM_STORE},  {"st", VM_STORE},
    {"wr", VM_STORE},     {"1", VM_STORE},       {"m", VM_MODIFY}, {"modify", VM_MODIFY},
    {"rw", VM_MODIFY},    {"2", VM_MODIFY},      {"f", VM_FETCH},  {"fetch", VM_FETCH},
    {"ifetch", VM_FETCH}, {"i", VM_FETCH},       {"x", VM_FETCH},  {"exec", VM_FETCH},
    {"3", VM_FETCH},      {"execute", VM_FETCH},
};

static const struct word truths[] = {
    {"0", VM_LOAD},  {"false", VM_LOAD}, {"no", VM_LOAD},   {"n", VM_LOAD},
    {"1", VM_STORE}, {"true", VM_STORE}, {"yes", VM_STORE}, {"y", VM_STORE},
};

void vm_csv_begin(struct vm_text *t, char separator, const uint8_t *role, uint32_t columns)
{
    struct csv_memory memory = {.separator = separator, .columns = (uint8_t)columns};

    memcpy(memory.role, role, columns);
    memcpy(t->memory, &memory, sizeof(memory));
}

/* The value from at to the next separator, without the spaces and quotes around it, and where the
 * rest of the line starts: behind the separator, or NULL at the end. NULL field: quotes are open.
 */
static const char *next_field(const char *at, const char *end, char separator, struct field *field)
{
    const char *stop;

    while (at < end && *at == ' ') {
        at++;
    }
    if (at < end && *at == '"') {
        const char *quote = memchr(at + 1, '"', (size_t)(end - at - 1));

        *field = (struct field){quote ? at + 1 : NULL, quote};
        at = quote ? quote + 1 : end;
        stop = memchr(at, separator, (size_t)(end - at));
        return stop ? stop + 1 : NULL;
    }
    stop = memchr(at, separator, (size_t)(end - at));
    *field = (struct field){at, stop ? stop : end};
    while (field->end > field->at && field->end[-1] == ' ') {
        field->end--;
    }
    return stop ? stop + 1 : NULL;
}

static int find_word(const struct word *words, size_t count, struct field f)
{
    size_t length = (size_t)(f.end - f.at);

    for (size_t i = 0; i < count; i++) {
        if (strlen(words[i].text) == length && strncasecmp(words[i].text, f.at, length) == 0) {
            return words[i].value;
        }
    }
    return -1;
}

static bool whole_number(struct field f, uint64_t *value)
{
    return vm_parse_decimal(f.at, value) == f.end;
}

static bool place(struct field f, bool hex, uint64_t *value)
{
    const char *after = vm_parse_0x(f.at, value);

    if (!after) {
        after = hex ? vm_parse_hex(f.at, value) : vm_parse_decimal(f.at, value);
    }
    return after == f.end;
}

/* A number of units of so many nanoseconds; digits below a nanosecond are cut off. */
static bool time_of(struct field f, uint64_t unit, uint64_t *ns)
{
    uint64_t whole;
    const char *at = vm_parse_decimal(f.at, &whole);

    if (!at || __builtin_mul_overflow(whole, unit, ns)) {
        return false;
    }
    if (*at == '.' && at < f.end) {
        for (at++; *at >= '0' && *at <= '9'; at++) {
            unit /= 10;
            if (__builtin_add_overflow(*ns, (uint64_t)(*at - '0') * unit, ns)) {
                return false;
            }
        }
    }
    return at == f.end;
}

static bool page_place(struct field f, uint64_t *value)
{
    if (!place(f, false, value) || *value >> (64 - VM_PAGE_SHIFT)) {
        return false;
    }
    *value <<= VM_PAGE_SHIFT;
    return true;
}

static bool size_of(struct field f, struct vm_text_access *a)
{
    uint64_t size;

    if (!whole_number(f, &size) || size > VM_TEXT_MAX_SIZE) {
        return false;
    }
    a->size = (uint16_t)size;
    return true;
}

static bool stream_of(struct field f, struct vm_text_access *a)
{
    uint64_t stream;

    if (!whole_number(f, &stream) || stream > UINT32_MAX) {
        return false;
    }
    a->stream = (uint32_t)stream;
    return true;
}

static bool kind_of(const struct word *words, size_t count, struct field f,
                    struct vm_text_access *a)
{
    int kind = find_word(words, count, f);

    a->kind = (uint8_t)kind;
    return kind >= 0;
}

enum { NO_BLOCK = 1 }; /* no block starts there */

/* What a value says about its access; false if it can't be read. */
static bool take(struct vm_text *t, uint8_t role, struct field f, struct vm_text_access *a,
                 uint64_t *start)
{
    switch (role) {
    case VM_CSV_ADDRESS:
    case VM_CSV_OFFSET:
        return place(f, false, &a->address);
    case VM_CSV_ADDRESS_HEX:
        return place(f, true, &a->address);
    case VM_CSV_PAGE:
        return page_place(f, &a->address);
    case VM_CSV_BLOCK:
        return vm_text_block(t, f.at, (size_t)(f.end - f.at), start);
    case VM_CSV_KIND:
        return kind_of(kinds, sizeof(kinds) / sizeof(kinds[0]), f, a);
    case VM_CSV_WRITE:
        return kind_of(truths, sizeof(truths) / sizeof(truths[0]), f, a);
    case VM_CSV_SIZE:
        return size_of(f, a);
    case VM_CSV_STREAM:
        return stream_of(f, a);
    case VM_CSV_TIME_NS:
        return time_of(f, 1, &a->time);
    case VM_CSV_TIME_US:
        return time_of(f, 1000, &a->time);
    case VM_CSV_TIME_MS:
        return time_of(f, 1000000, &a->time);
    case VM_CSV_TIME_S:
        return time_of(f, 1000000000, &a->time);
    default:
        return true;
    }
}

/* Let the address be that of the place in the block, if there is one; false if no access can be
 * there. */
static bool lay(struct vm_text_access *a, uint64_t start)
{
    if (!vm_text_sound(a->address, a->size)) {
        return false;
    }
    if (start != NO_BLOCK) {
        if ((a->address + a->size - 1) >> VM_TEXT_BLOCK_SHIFT) {
            return false;
        }
        a->address += start;
    }
    return true;
}

enum vm_line vm_line_csv(struct vm_text *t, const char *line, const char *end)
{
    const struct csv_memory *memory = (const struct csv_memory *)t->memory;
    struct vm_text_access access = {.size = 1};
    uint64_t start = NO_BLOCK;
    unsigned column = 0;

    for (const char *at = line; at; column++) {
        struct field field;

        at = next_field(at, end, memory->separator, &field);
        if (column >= memory->columns || !field.at ||
            !take(t, memory->role[column], field, &access, &start)) {
            return VM_LINE_UNKNOWN;
        }
    }
    if (column != memory->columns || !lay(&access, start)) {
        return VM_LINE_UNKNOWN;
    }
    vm_text_put(t, access);
    return VM_LINE_KNOWN;
}

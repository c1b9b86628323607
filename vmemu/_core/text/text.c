#include "text.h"

#include <string.h>

#include "line.h"

/* clang-format off */
static const vm_line_parser parsers[VM_TEXT_FORMATS] = {
    [VM_TEXT_LACKEY] = vm_line_lackey,
    [VM_TEXT_PERF] = vm_line_perf,
    [VM_TEXT_DAMON] = vm_line_damon,
    [VM_TEXT_REAP] = vm_line_reap,
    [VM_TEXT_CSV] = vm_line_csv,
    [VM_TEXT_DRVIEW] = vm_line_drview,
    [VM_TEXT_DRAMSIM] = vm_line_dramsim,
    [VM_TEXT_RAMULATOR] = vm_line_ramulator,
    [VM_TEXT_QEMU_LOG] = vm_line_qemu_log,
    [VM_TEXT_EXECLOG] = vm_line_execlog,
};
/* clang-format on */

const uint8_t vm_hex_digit[256] = {
    ['0'] = 1,  ['1'] = 2,  ['2'] = 3,  ['3'] = 4,  ['4'] = 5,  ['5'] = 6,  ['6'] = 7,  ['7'] = 8,
    ['8'] = 9,  ['9'] = 10, ['a'] = 11, ['b'] = 12, ['c'] = 13, ['d'] = 14, ['e'] = 15, ['f'] = 16,
    ['A'] = 11, ['B'] = 12, ['C'] = 13, ['D'] = 14, ['E'] = 15, ['F'] = 16,
};

const char *vm_parse_seconds(const char *at, uint64_t *ns)
{
    uint64_t seconds, fraction = 0, unit = 1000000000;

    at = vm_parse_decimal(at, &seconds);
    if (!at || seconds > UINT64_MAX / 1000000000 - 1) {
        return NULL;
    }
    if (*at == '.') {
        for (at++; *at >= '0' && *at <= '9' && unit > 1; at++) {
            unit /= 10;
            fraction += (uint64_t)(*at - '0') * unit;
        }
    }
    *ns = seconds * 1000000000 + fraction;
    return at;
}

const char *vm_skip_word(const char *at, const char *end, const char *word)
{
    size_t length = strlen(word);

    return (size_t)(end - at) >= length && memcmp(at, word, length) == 0 ? at + length : NULL;
}

bool vm_text_block(struct vm_text *t, const char *name, size_t length, uint64_t *start)
{
    uint64_t block = 0;

    if (length == 0 || length >= VM_TEXT_BLOCK_NAME || memchr(name, 0, length)) {
        return false;
    }
    while (block < t->blocks &&
           (memcmp(t->block[block], name, length) != 0 || t->block[block][length] != 0)) {
        block++;
    }
    if (block == VM_TEXT_BLOCKS) {
        return false;
    }
    if (block == t->blocks) {
        memcpy(t->block[block], name, length); /* the rest of it is zeros */
        t->blocks++;
    }
    *start = block << VM_TEXT_BLOCK_SHIFT;
    return true;
}

static void count_unknown(struct vm_text *state, const char *line, size_t length)
{
    if (state->unknown++ > 0) {
        return;
    }
    if (length > sizeof(state->first_unknown_text)) {
        length = sizeof(state->first_unknown_text);
    }
    state->first_unknown = state->lines + 1;
    state->first_unknown_length = (uint32_t)length;
    memcpy(state->first_unknown_text, line, length);
}

/* Throws away the rest of a long line; returns the bytes of it. */
static size_t skip_long_line(struct vm_text *state, const char *text, size_t length)
{
    const char *newline = length ? memchr(text, '\n', length) : NULL;

    if (!newline) {
        return length;
    }
    state->in_long_line = false;
    state->lines++;
    return (size_t)(newline + 1 - text);
}

/* An empty line, or a comment: what people put into a recording of any format. */
static bool says_nothing(const char *line, const char *end)
{
    line = vm_skip_spaces(line);
    return line == end || *line == '#';
}

static void parse_line(struct vm_text *state, vm_line_parser parser, const char *line,
                       const char *newline)
{
    const char *end = newline > line && newline[-1] == '\r' ? newline - 1 : newline;

    if (newline - line >= VM_TEXT_MAX_LINE ||
        (!says_nothing(line, end) && parser(state, line, end) == VM_LINE_UNKNOWN)) {
        count_unknown(state, line, (size_t)(newline - line));
    }
    state->lines++;
}

size_t vm_text_parse(struct vm_text *state, enum vm_text_format format, const char *text,
                     size_t length)
{
    const char *at = text, *end = text + length, *newline = NULL;

    state->filled = 0;
    if (state->in_long_line) {
        at += skip_long_line(state, text, length);
    }
    while (state->filled + VM_TEXT_LINE_ACCESSES <= state->out.capacity) {
        newline = at < end ? memchr(at, '\n', (size_t)(end - at)) : NULL;
        if (!newline) {
            break;
        }
        parse_line(state, parsers[format], at, newline);
        at = newline + 1;
    }
    if (!newline && end - at >= VM_TEXT_MAX_LINE && !state->in_long_line) {
        count_unknown(state, at, (size_t)(end - at));
        state->in_long_line = true;
        at = end;
    }
    return (size_t)(at - text);
}

/*
 * QEMU's log trace backend, of a post-copy destination:
 *
 *   16729@1795396638.782056:postcopy_ram_fault_thread_request Request for HVA=0x7f4cf91a0000 ...
 *   2025-09-25T09:46:41.782056Z postcopy_ram_fault_thread_request Request for HVA=...
 *   postcopy_ram_fault_thread_request Request for HVA=...
 *
 * The first with -msg timestamp=on, the second so from QEMU 10.2 on, the third without. A fault is
 * logged twice where blocktime is on: as a request, by block and offset, and as the begin of a
 * stop, by address. Whatever looks like another event or a message of a program is known and left
 * out.
 */
#include "qemulog.h"

#include <string.h>

#include "../event_table.h"
#include "line.h"

enum meaning { REQUEST, BEGIN, CLIENT };
enum dropped { DROPPED_TWICE, DROPPED_CLIENT };

/* The texts of the event table are those of QEMU 7.2; before 2.12 there was no pid. */
static const struct form {
    const char *name;
    enum meaning meaning;
    const char *text;
} forms[] = {
    {"postcopy_ram_fault_thread_request", REQUEST, VM_FAULT_REQUEST_TEXT},
    {"postcopy_ram_fault_thread_request", REQUEST,
     "Request for HVA={host:hp} rb={block:ns} offset=0x{offset:ax}"},
    {"mark_postcopy_blocktime_begin", BEGIN, VM_BLOCKTIME_BEGIN_TEXT},
    {"postcopy_blocktime_begin", BEGIN,
     "addr: {addr:hp}, time: {time:mu}, cpu: {cpu:ld}, exist: {exists:ud}"},
    {"postcopy_request_shared_page", CLIENT, VM_REQUEST_SHARED_TEXT},
};

/* What the fields of a text held, by the letter that the event table gives them. */
struct values {
    uint64_t of[128];
    const char *block;
    size_t block_length;
};

/* A text goes on until the literal behind its field; that of a last field is the rest. */
static const char *end_of_text(const char *pattern, const char *at, const char *end)
{
    size_t length = strcspn(pattern, "{");

    return length ? memmem(at, (size_t)(end - at), pattern, length) : end;
}

static const char *take_field(const char *field, const char *at, const char *end, struct values *v)
{
    const char *colon = strchr(field, ':'), *start = at;
    unsigned char source = (unsigned char)colon[1];

    switch (colon[2]) {
    case 's':
        at = end_of_text(strchr(field, '}') + 1, at, end);
        if (at && source == 'n') {
            v->block = start;
            v->block_length = (size_t)(at - start);
        }
        return at;
    case 'x':
        return vm_parse_hex(at, &v->of[source]);
    case 'p': /* glibc's %p of NULL */
        return vm_skip_word(at, end, "(nil)") ? at + 5 : vm_parse_0x(at, &v->of[source]);
    default:
        return vm_parse_signed(at, &v->of[source]);
    }
}

/* Whether [at, end) is such a text as a whole. */
static bool matches(const char *pattern, const char *at, const char *end, struct values *v)
{
    for (; at && *pattern; pattern++) {
        if (*pattern == '{') {
            at = take_field(pattern, at, end, v);
            pattern = strchr(pattern, '}');
        } else if (at == end || *at++ != *pattern) {
            return false;
        }
    }
    return at == end;
}

static bool is_name(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

/* Days from 1970-01-01 in the Gregorian calendar; March is the first month, so that leap days are
 * last. */
static uint64_t days_from(uint64_t year, uint64_t month, uint64_t day)
{
    uint64_t y = month <= 2 ? year - 1 : year, m = (month + 9) % 12;

    return y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719468;
}

static const uint64_t LEAP_MINUTE_NS = 61 * UINT64_C(1000000000);

/* 2025-09-25T09:46:41.123456Z and a blank; without a fraction when that is zero. */
static const char *parse_iso8601(const char *at, uint64_t *ns)
{
    static const char form[] = "0000-00-00T00:00:";
    uint64_t number[5] = {0}, seconds;
    size_t field = 0;

    for (size_t i = 0; form[i]; i++, at++) {
        if (form[i] != '0' && *at == form[i]) {
            field++;
        } else if (form[i] == '0' && *at >= '0' && *at <= '9') {
            number[field] = number[field] * 10 + (uint64_t)(*at - '0');
        } else {
            return NULL;
        }
    }
    at = vm_parse_seconds(at, &seconds);
    if (!at || at[0] != 'Z' || at[1] != ' ' || number[0] < 1970 || number[0] > 2200 ||
        number[1] < 1 || number[1] > 12 || number[2] < 1 || number[2] > 31 || number[3] > 23 ||
        number[4] > 59 || seconds >= LEAP_MINUTE_NS) {
        return NULL;
    }
    *ns = (days_from(number[0], number[1], number[2]) * 86400 + number[3] * 3600 + number[4] * 60) *
              1000000000 +
          seconds;
    return at + 2;
}

/* Behind TID@SEC.USEC: */
static const char *parse_thread_and_time(const char *at, uint64_t *ns)
{
    uint64_t tid;

    at = vm_parse_decimal(at, &tid);
    at = at && *at == '@' ? vm_parse_seconds(at + 1, ns) : NULL;
    return at && *at == ':' ? at + 1 : NULL;
}

/* Behind the name of the first event of interest in the line; *form is the first with its name. */
static const char *find_event(const char *line, const char *end, size_t *form)
{
    const char *at = line, *word, *behind;

    /* Newer versions may put the guest's, the program's and the thread's name before the event's.
     */
    while ((at = memmem(at, (size_t)(end - at), "postcopy_", 9)) != NULL) {
        for (word = at; word > line && is_name(word[-1]); word--) {
        }
        for (behind = at; is_name(*behind); behind++) {
        }
        if (word == line || word[-1] == ' ' || word[-1] == ':') {
            for (*form = 0; *form < sizeof(forms) / sizeof(*forms); (*form)++) {
                if (strlen(forms[*form].name) == (size_t)(behind - word) &&
                    memcmp(forms[*form].name, word, (size_t)(behind - word)) == 0) {
                    return behind;
                }
            }
        }
        at = behind;
    }
    return NULL;
}

/*
 * An event's name, which has an underscore, or a message of a program: "qemu-system-x86_64: ...",
 * in newer versions with the thread, "qemu-system-x86_64(772366:main): ...".
 */
static bool is_event_or_message(const char *line, const char *end)
{
    const char *at = line;
    bool underscore = false;

    for (; is_name(*at); at++) {
        underscore |= *at == '_' && at > line;
    }
    if (underscore && (at == end || *at == ' ')) {
        return true;
    }
    for (at = line; is_name(*at) || *at == '-' || *at == '.' || *at == '+'; at++) {
    }
    if (at > line && *at == '(') {
        at = memchr(at, ')', (size_t)(end - at));
        at = at ? at + 1 : end;
    }
    return at > line && at[0] == ':' && (at + 1 == end || at[1] == ' ');
}

static bool is_used(struct vm_text *t, uint64_t which)
{
    uint64_t *used = &t->memory[VM_QEMU_LOG_USED];

    *used = *used ? *used : which;
    t->dropped[DROPPED_TWICE] += *used != which;
    return *used == which;
}

static enum vm_line put_request(struct vm_text *t, const struct values *v, uint64_t time)
{
    uint64_t offset = v->of['a'], pid = v->of['b'];
    uint64_t block;

    if (offset >> VM_TEXT_BLOCK_SHIFT || pid > UINT32_MAX ||
        !vm_text_block(t, v->block, v->block_length, &block)) {
        return VM_LINE_UNKNOWN;
    }
    if (!is_used(t, VM_QEMU_LOG_REQUESTS)) {
        return VM_LINE_KNOWN;
    }
    t->memory[VM_QEMU_LOG_THREADS] += pid != 0;
    vm_text_put(t, (struct vm_text_access){.address = block | offset,
                                           .time = time,
                                           .stream = (uint32_t)pid,
                                           .size = 1,
                                           .kind = VM_LOAD});
    return VM_LINE_KNOWN;
}

static enum vm_line put_begin(struct vm_text *t, const struct values *v, uint64_t time)
{
    if (is_used(t, VM_QEMU_LOG_BEGINS)) {
        t->memory[VM_QEMU_LOG_THREADS]++;
        /* cpu -1, a thread that is no vCPU, becomes the largest stream. */
        vm_text_put(t, (struct vm_text_access){.address = v->of['h'],
                                               .time = time,
                                               .stream = (uint32_t)v->of['l'],
                                               .size = 1,
                                               .kind = VM_LOAD});
    }
    return VM_LINE_KNOWN;
}

static enum vm_line put_event(struct vm_text *t, size_t form, const char *text, const char *end,
                              uint64_t time)
{
    const char *name = forms[form].name;

    for (; form < sizeof(forms) / sizeof(*forms) && strcmp(forms[form].name, name) == 0; form++) {
        struct values v = {0};

        if (!matches(forms[form].text, text, end, &v)) {
            continue;
        }
        switch (forms[form].meaning) {
        case REQUEST:
            return put_request(t, &v, time);
        case BEGIN:
            return put_begin(t, &v, time);
        case CLIENT:
            t->dropped[DROPPED_CLIENT]++;
            return VM_LINE_KNOWN;
        }
    }
    return VM_LINE_UNKNOWN;
}

enum vm_line vm_line_qemu_log(struct vm_text *t, const char *line, const char *end)
{
    uint64_t time = 0;
    const char *stamped = parse_thread_and_time(line, &time), *behind;
    size_t form;

    stamped = stamped ? stamped : parse_iso8601(line, &time);
    line = stamped ? stamped : line;
    behind = find_event(line, end, &form);
    if (!behind) {
        return stamped || is_event_or_message(line, end) ? VM_LINE_KNOWN : VM_LINE_UNKNOWN;
    }
    if (*behind != ' ' || (t->memory[VM_QEMU_LOG_TIMED] && !stamped)) {
        return VM_LINE_UNKNOWN;
    }
    return put_event(t, form, behind + 1, end, time);
}

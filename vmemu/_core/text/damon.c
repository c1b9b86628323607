/*
 * A line is a region that DAMON has watched for an interval, as perf script and trace-cmd print its
 * tracepoints, or as damo writes them itself:
 *
 *   kdamond.0  4452 [000] 82877.315633: damon:damon_aggregated: target_id=0 nr_regions=17
 *       140731667070976-140731668037632: 0 3
 *   kdamond.0-4452  [005] ..... 101005.778382: damon_aggregated:     target_id=0 nr_regions=...
 *   kdamond.x xxxx xxxx 82877.315633: damon:damon_aggregated: target_id=0 nr_regions=...
 *
 * with start-end: accesses, then from Linux 5.17 on the age, and in damon_region_aggregated what
 * probes hit. damos_before_apply begins with ctx_idx= scheme_idx= target_idx= instead; where
 * several events are recorded they show the same regions, so only that of the first region is read.
 *
 * A region that was accessed gives two entries: its start with the time, and its end with the
 * target in place of the time.
 */
#include "damon.h"

#include <string.h>

#include "line.h"

static const char *const events[] = {
    "damon_aggregated: ", "damon_region_aggregated: ", "damos_before_apply: "};

/* Number of the event, from 1, with what is behind it in *rest; 0: another line. */
static unsigned find_event(const char *line, const char *end, const char **event, const char **rest)
{
    for (unsigned i = 0; i < sizeof(events) / sizeof(events[0]); i++) {
        const char *at = memmem(line, (size_t)(end - line), events[i], strlen(events[i]));

        if (at && at > line && (at[-1] == ' ' || at[-1] == ':')) {
            *event = at;
            *rest = at + strlen(events[i]);
            return i + 1;
        }
    }
    return 0;
}

/* The time in front of the event, which may have its "damon:". */
static bool time_before(const char *line, const char *event, uint64_t *ns)
{
    const char *at = event, *end;

    while (at > line && at[-1] != ' ') {
        at--;
    }
    while (at > line && at[-1] == ' ') {
        at--;
    }
    end = at;
    while (at > line && at[-1] != ' ') {
        at--;
    }
    return end > at && end[-1] == ':' && vm_parse_seconds(at, ns) == end - 1;
}

/* "KEY=NUMBER " with any of the keys that name a target or what it belongs to. */
static const char *parse_keys(const char *at, const char *end, uint64_t *target)
{
    static const char *const keys[] = {
        "ctx_idx=", "context_id=", "scheme_idx=", "target_idx=", "target_id="};
    uint64_t found[sizeof(keys) / sizeof(keys[0])] = {0}, regions;
    const char *value;

    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        value = vm_skip_word(at, end, keys[i]);
        if (value) {
            at = vm_parse_decimal(value, &found[i]);
            if (!at) {
                return NULL;
            }
            at = vm_skip_spaces(at);
        }
    }
    *target = found[3] | found[4];
    value = vm_skip_word(at, end, "nr_regions=");
    at = value ? vm_parse_decimal(value, &regions) : NULL;
    return at ? vm_skip_spaces(at) : NULL;
}

/* "START-END: ACCESSES"; the accesses of the mark that damo puts behind a lone snapshot are -1. */
static const char *parse_region(const char *at, uint64_t *start, uint64_t *end, uint64_t *accesses)
{
    at = vm_parse_decimal(at, start);
    at = at && *at == '-' ? vm_parse_decimal(at + 1, end) : NULL;
    if (!at || at[0] != ':' || at[1] != ' ') {
        return NULL;
    }
    at += 2;
    if (at[0] == '-' && at[1] == '1') {
        *accesses = 0;
        return at + 2;
    }
    return vm_parse_decimal(at, accesses);
}

/* An event of DAMON's or its schemes' that is about no region. */
static enum vm_line other_line(const char *line, const char *end)
{
    return memmem(line, (size_t)(end - line), "damo", 4) ? VM_LINE_KNOWN : VM_LINE_UNKNOWN;
}

enum vm_line vm_line_damon(struct vm_text *t, const char *line, const char *end)
{
    uint64_t time, target, first, last, accesses;
    const char *event, *at;
    unsigned number = find_event(line, end, &event, &at);

    if (!number) {
        return other_line(line, end);
    }
    if (!time_before(line, event, &time) || !(at = parse_keys(vm_skip_spaces(at), end, &target)) ||
        !(at = parse_region(at, &first, &last, &accesses)) || (at != end && *at != ' ') ||
        last < first) {
        return VM_LINE_UNKNOWN;
    }
    if (t->memory[VM_DAMON_EVENT] != 0 && t->memory[VM_DAMON_EVENT] != number) {
        t->dropped[VM_DAMON_OTHER_EVENT] += accesses > 0;
        return VM_LINE_KNOWN;
    }
    t->memory[VM_DAMON_EVENT] = number;
    if (last > t->memory[VM_DAMON_HIGHEST]) {
        t->memory[VM_DAMON_HIGHEST] = last;
    }
    if (accesses > 0) {
        vm_text_put(t, (struct vm_text_access){.address = first, .time = time, .size = 1});
        vm_text_put(t, (struct vm_text_access){.address = last, .time = target, .size = 1});
    }
    return VM_LINE_KNOWN;
}

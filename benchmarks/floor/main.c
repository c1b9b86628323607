/*
 * floor fault qemu|one|sigbus|shm|inline --pages N [--huge] [--spread]
 * floor bulk pipe|continue --bytes N [--spread]
 * floor resident TRACE.vmtrace [--checked]
 */
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "floor.h"

static _Noreturn void usage(const char *what)
{
    fprintf(stderr, "floor: %s; see main.c\n", what);
    exit(2);
}

int main(int argc, char **argv)
{
    static const struct option known[] = {
        {"pages", required_argument, NULL, 'p'}, {"bytes", required_argument, NULL, 'b'},
        {"huge", no_argument, NULL, 'h'},        {"spread", no_argument, NULL, 's'},
        {"checked", no_argument, NULL, 'c'},     {0},
    };
    struct options o = {.pages = 4096, .bytes = 256 << 20};
    int option;

    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (option) {
        case 'p':
            o.pages = strtoull(optarg, NULL, 0);
            break;
        case 'b':
            o.bytes = strtoull(optarg, NULL, 0);
            break;
        case 'h':
            o.huge = true;
            break;
        case 's':
            o.spread = true;
            break;
        case 'c':
            o.checked = true;
            break;
        default:
            usage("an option that there is not");
        }
    }
    if (argc - optind != 2 || !o.pages || !o.bytes) {
        usage("what to run, and which kind of it");
    }
    o.kind = o.trace = argv[optind + 1];
    if (!strcmp(argv[optind], "fault")) {
        run_faults(&o);
    } else if (!strcmp(argv[optind], "bulk")) {
        run_bulk(&o);
    } else if (!strcmp(argv[optind], "resident")) {
        run_resident(&o);
    } else {
        usage("nothing of this name to run");
    }
    return 0;
}

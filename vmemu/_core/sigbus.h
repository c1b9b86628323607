/*
 * SIGBUS as a way to be told of a missing page: with UFFD_FEATURE_SIGBUS the kernel queues no
 * message and stops nobody, it sends the thread that touched the page a SIGBUS of its own.
 */
#ifndef VM_SIGBUS_H
#define VM_SIGBUS_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"

/* What a thread does about a SIGBUS of its own at an address: true, the access is to be made again;
 * false, it is none of its business. */
typedef bool (*vm_sigbus_server)(void *context, uint64_t address);

/*
 * The handler is one for the process and counts its users. What no server takes on goes to whoever
 * handled SIGBUS before, or ends the process as if there were no handler. install: 0, or -1.
 */
int vm_sigbus_install(struct vm_error *err);
void vm_sigbus_remove(void);

/* Who serves the calling thread from now on; NULL: nobody. */
void vm_sigbus_serve(vm_sigbus_server server, void *context);

#endif

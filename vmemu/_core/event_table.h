/*
 * Every event that the log knows: QEMU's names and texts, so that the same tools read both.
 *
 *   X(ID, name, side, run, text, extra)
 *
 * text is what QEMU prints behind the name; a field in it is {argument:SC}, where S says where the
 * value comes from and C how it is printed. extra has the fields that only JSON lines carry. The
 * reader in Python makes its patterns from this same table.
 *
 *   S  a, b    the event's two numbers
 *      l, u    the low and the high 32 bits of b, signed
 *      n, o    the block's name; where it begins in all of RAM, one block behind the other
 *      h       address of byte a of the block
 *      g       a in target pages of 4 KiB
 *      r       bytes of b host pages of the block
 *      w       word number a of the list below
 *      c       "client" and b, a process that maps the same memory
 *      m       milliseconds since the log began
 *      t       milliseconds until now in which all vCPUs were stopped at once
 *      z, 1    0 (where QEMU shows a pointer of its own), 1
 *      i, k    the log's side, the number of vCPUs
 *   C  s text   u decimal   d signed decimal   x hexadecimal   p the same with 0x before it
 *
 * run: b counts host pages, from byte a on; as text this becomes a line for each page.
 */
#ifndef VM_EVENT_TABLE_H
#define VM_EVENT_TABLE_H

/* clang-format off */
#define VM_RANGE_TEXT "{block:ns}: {host:hp} offset=0x{ram_offset:ox} length=0x{length:bx}"
#define VM_FAULT_REQUEST_TEXT "Request for HVA={host:hp} rb={block:ns} offset=0x{offset:ax} pid={pid:bu}"
#define VM_BLOCKTIME_BEGIN_TEXT "addr: {addr:hp}, dd: {dd:zp}, time: {time:mu}, cpu: {cpu:ld}, already_received: {already_received:ud}"
#define VM_REQUEST_SHARED_TEXT "for {sharer:cs} in {block:ns} offset 0x{offset:ax}"
#define VM_QUEUED_TEXT "{block:ns}/0x{offset:ax} page_abs=0x{page_abs:gx}"

#define VM_EVENT_TABLE(X) \
    /* the log itself, always the first line of a side */ \
    X(LOG, vmemu_event_log, BOTH, 0, "side={of:is} vcpus={vcpus:ku} events={events:au} lost={lost:bu}", "") \
    /* both sides */ \
    X(SET_STATE, migrate_set_state, BOTH, 0, "new state {new_state:ws}", "") \
    X(RETURN_PATH_BAD_END, source_return_path_thread_bad_end, SOURCE, 0, "", "") \
    /* the destination */ \
    X(PROCESS_COMMAND, loadvm_process_command, DESTINATION, 0, "com={com:ws} len={len:bd}", "") \
    X(HANDLE_ADVISE, loadvm_postcopy_handle_advise, DESTINATION, 0, "", "") \
    X(INIT_RANGE, postcopy_init_range, DESTINATION, 0, VM_RANGE_TEXT, "") \
    X(NHP_RANGE, postcopy_nhp_range, DESTINATION, 0, VM_RANGE_TEXT, "") \
    X(CLEANUP_RANGE, postcopy_cleanup_range, DESTINATION, 0, VM_RANGE_TEXT, "") \
    X(HANDLE_DISCARD, loadvm_postcopy_ram_handle_discard, DESTINATION, 0, "", "") \
    X(DISCARD_HEADER, loadvm_postcopy_ram_handle_discard_header, DESTINATION, 0, "{block:ns}: {len:au}d", "") \
    X(DISCARD_RANGE, ram_discard_range, DESTINATION, 0, "{block:ns}: start: {start:ax} {length:bx}", "") \
    X(HANDLE_DISCARD_END, loadvm_postcopy_ram_handle_discard_end, DESTINATION, 0, "", "") \
    X(HANDLE_LISTEN, loadvm_postcopy_handle_listen, DESTINATION, 0, "{step:ws}", "") \
    X(ENABLE_NOTIFY, postcopy_ram_enable_notify, DESTINATION, 0, "", "") \
    X(HANDLE_RUN, loadvm_postcopy_handle_run, DESTINATION, 0, "", "") \
    X(HANDLE_RUN_BH, loadvm_postcopy_handle_run_bh, DESTINATION, 0, "{step:ws}", "") \
    X(HANDLE_RESUME, loadvm_postcopy_handle_resume, DESTINATION, 0, "", "") \
    X(FAULT_THREAD_ENTRY, postcopy_ram_fault_thread_entry, DESTINATION, 0, "", "") \
    X(FAULT_THREAD_FDS_CORE, postcopy_ram_fault_thread_fds_core, DESTINATION, 0, "ufd: {ufd:ad} quitfd: {quitfd:bd}", "") \
    X(FAULT_THREAD_REQUEST, postcopy_ram_fault_thread_request, DESTINATION, 0, VM_FAULT_REQUEST_TEXT, "") \
    X(FAULT_CPU, get_mem_fault_cpu_index, DESTINATION, 0, "cpu: {cpu:ad}, pid: {pid:bu}", "") \
    X(BLOCKTIME_BEGIN, mark_postcopy_blocktime_begin, DESTINATION, 0, VM_BLOCKTIME_BEGIN_TEXT, "{block:ns}{offset:au}") \
    X(BLOCKTIME_END, mark_postcopy_blocktime_end, DESTINATION, 0, "addr: {addr:hp}, dd: {dd:zp}, time: {time:tu}, affected_cpu: {affected_cpu:1d}", "{block:ns}{offset:au}{cpu:ld}") \
    X(PAGE_REQ_ADD, postcopy_page_req_add, DESTINATION, 0, "new page req {host:hp} total {total:bd}", "{block:ns}{offset:au}") \
    X(PAGE_REQ_DEL, postcopy_page_req_del, DESTINATION, 0, "resolved page req {host:hp} total {total:bd}", "{block:ns}{offset:au}") \
    X(PAGE_REQ_SYNC, postcopy_page_req_sync, DESTINATION, 0, "sync page req {host:hp}", "{block:ns}{offset:au}") \
    X(PLACE_PAGE, postcopy_place_page, DESTINATION, 1, "host={host:hp}", "{block:ns}{offset:au}{pages:bu}{length:ru}") \
    X(PLACE_PAGE_ZERO, postcopy_place_page_zero, DESTINATION, 1, "host={host:hp}", "{block:ns}{offset:au}{pages:bu}{length:ru}") \
    X(REQUEST_SHARED, postcopy_request_shared_page, DESTINATION, 0, VM_REQUEST_SHARED_TEXT, "") \
    X(REQUEST_SHARED_PRESENT, postcopy_request_shared_page_present, DESTINATION, 0, "{sharer:cs} already {block:ns} offset 0x{offset:ax}", "") \
    X(WAKE_SHARED, postcopy_wake_shared, DESTINATION, 0, "at {client_addr:bp} in {block:ns}", "") \
    X(FAULT_THREAD_QUIT, postcopy_ram_fault_thread_quit, DESTINATION, 0, "", "") \
    X(FAULT_THREAD_EXIT, postcopy_ram_fault_thread_exit, DESTINATION, 0, "", "") \
    X(LISTEN_THREAD_START, postcopy_ram_listen_thread_start, DESTINATION, 0, "", "") \
    X(LISTEN_THREAD_EXIT, postcopy_ram_listen_thread_exit, DESTINATION, 0, "", "") \
    X(PAUSE_INCOMING, postcopy_pause_incoming, DESTINATION, 0, "", "") \
    X(PAUSE_INCOMING_CONTINUED, postcopy_pause_incoming_continued, DESTINATION, 0, "", "") \
    X(PAUSE_FAULT_THREAD, postcopy_pause_fault_thread, DESTINATION, 0, "", "") \
    X(PAUSE_FAULT_THREAD_CONTINUED, postcopy_pause_fault_thread_continued, DESTINATION, 0, "", "") \
    X(CLEANUP_ENTRY, postcopy_ram_incoming_cleanup_entry, DESTINATION, 0, "", "") \
    X(CLEANUP_JOIN, postcopy_ram_incoming_cleanup_join, DESTINATION, 0, "", "") \
    X(CLEANUP_CLOSEUF, postcopy_ram_incoming_cleanup_closeuf, DESTINATION, 0, "", "") \
    X(CLEANUP_BLOCKTIME, postcopy_ram_incoming_cleanup_blocktime, DESTINATION, 0, "total blocktime {total:au}", "") \
    X(CLEANUP_EXIT, postcopy_ram_incoming_cleanup_exit, DESTINATION, 0, "", "") \
    /* the source */ \
    X(COMMAND_SEND, savevm_command_send, SOURCE, 0, "com=0x{com:ax} len={len:bd}", "") \
    X(OPEN_RETURN_PATH, savevm_send_open_return_path, SOURCE, 0, "", "") \
    X(SEND_ADVISE, qemu_savevm_send_postcopy_advise, SOURCE, 0, "", "") \
    X(SETUP_COMPLETE, migration_thread_setup_complete, SOURCE, 0, "", "") \
    X(BITMAP_SYNC_START, migration_bitmap_sync_start, SOURCE, 0, "", "") \
    X(BITMAP_SYNC_END, migration_bitmap_sync_end, SOURCE, 0, "dirty_pages {dirty_pages:au}", "") \
    X(LOW_PENDING, migration_thread_low_pending, SOURCE, 0, "{pending:au}", "") \
    X(POSTCOPY_START, postcopy_start, SOURCE, 0, "", "") \
    X(POSTCOPY_START_SET_RUN, postcopy_start_set_run, SOURCE, 0, "", "") \
    X(DISCARD_SEND_RANGE, postcopy_discard_send_range, SOURCE, 0, "{block:ns}:{start:ax}/{length:bx}", "") \
    X(DISCARD_SEND_COMMAND, qemu_savevm_send_postcopy_ram_discard, SOURCE, 0, "{block:ns}: {len:au}d", "") \
    X(DISCARD_SEND_FINISH, postcopy_discard_send_finish, SOURCE, 0, "{block:ns} mask words sent={words:ad} in {commands:bd} commands", "") \
    X(SEND_DISCARD_BITMAP, ram_postcopy_send_discard_bitmap, SOURCE, 0, "", "") \
    X(SEND_LISTEN, savevm_send_postcopy_listen, SOURCE, 0, "", "") \
    X(SEND_RUN, savevm_send_postcopy_run, SOURCE, 0, "", "") \
    X(SEND_RESUME, savevm_send_postcopy_resume, SOURCE, 0, "", "") \
    X(REQ_PAGES, migrate_handle_rp_req_pages, SOURCE, 0, "in {block:ns} at 0x{offset:ax} len 0x{len:bx}", "") \
    X(QUEUE_PAGES, ram_save_queue_pages, SOURCE, 0, "{block:ns}: start: 0x{start:ax} len: 0x{len:bx}", "") \
    X(QUEUED_PAGE, get_queued_page, SOURCE, 0, VM_QUEUED_TEXT, "") \
    X(QUEUED_PAGE_NOT_DIRTY, get_queued_page_not_dirty, SOURCE, 0, VM_QUEUED_TEXT, "") \
    X(SAVE_PAGE, ram_save_page, SOURCE, 1, "{block:ns}: offset: 0x{offset:ax} host: {host:hp}", "{pages:bu}{length:ru}") \
    X(PAUSE_RETURN_PATH, postcopy_pause_return_path, SOURCE, 0, "", "") \
    X(PAUSE_RETURN_PATH_CONTINUED, postcopy_pause_return_path_continued, SOURCE, 0, "", "") \
    X(PAUSE_CONTINUED, postcopy_pause_continued, SOURCE, 0, "", "") \
    X(VM_STOP, migration_completion_vm_stop, SOURCE, 0, "ret {ret:ad}", "") \
    X(POSTCOPY_END, migration_completion_postcopy_end, SOURCE, 0, "", "") \
    X(POSTCOPY_END_AFTER, migration_completion_postcopy_end_after_complete, SOURCE, 0, "", "") \
    X(RETURN_PATH_ENTRY, source_return_path_thread_entry, SOURCE, 0, "", "") \
    X(RETURN_PATH_SHUT, source_return_path_thread_shut, SOURCE, 0, "0x{val:ax}", "") \
    X(RETURN_PATH_END, source_return_path_thread_end, SOURCE, 0, "", "")

/* Words that events carry by number: states of a migration, steps, commands. */
#define VM_WORD_TABLE(X) \
    X(NONE, "none") X(SETUP, "setup") X(CANCELLING, "cancelling") X(CANCELLED, "cancelled") \
    X(ACTIVE, "active") X(POSTCOPY_ACTIVE, "postcopy-active") \
    X(POSTCOPY_PAUSED, "postcopy-paused") X(POSTCOPY_RECOVER, "postcopy-recover") \
    X(COMPLETED, "completed") X(FAILED, "failed") X(COLO, "colo") \
    X(PRE_SWITCHOVER, "pre-switchover") X(DEVICE, "device") X(WAIT_UNPLUG, "wait-unplug") \
    X(ENTER, "enter") X(AFTER_DISCARD, "after discard") X(AFTER_UFFD, "after uffd") \
    X(RETURN, "return") \
    X(COM_OPEN_RETURN_PATH, "OPEN_RETURN_PATH") X(COM_PING, "PING") \
    X(COM_ADVISE, "POSTCOPY_ADVISE") X(COM_LISTEN, "POSTCOPY_LISTEN") \
    X(COM_RUN, "POSTCOPY_RUN") X(COM_DISCARD, "POSTCOPY_RAM_DISCARD") \
    X(COM_RESUME, "POSTCOPY_RESUME") X(COM_PACKAGED, "PACKAGED") \
    X(COM_RECV_BITMAP, "RECV_BITMAP")
/* clang-format on */

#endif

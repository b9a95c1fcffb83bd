/* Let chosen file system calls below one folder fail, for a program that is started with LD_PRELOAD=this library.

   The program itself says which, through the faults_* functions at the end. A call is counted by its kind, and written
   to a log as "KIND<tab>PATH[<tab>SECOND PATH]", if it names a path below the folder or a descriptor of one. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#define KINDS(K) K(open) K(fallocate) K(write) K(fdatasync) K(fsync) K(close) K(rename) K(renameat2) K(link) K(unlink) \
    K(stat) K(statvfs) K(flock) K(setxattr) K(getxattr) K(ftruncate) K(mkdir) K(rmdir) K(utimens) K(read) \
    K(copy_file_range) K(splice) K(opendir) K(chmod) K(chown)
#define AS_ENUM(name) kind_##name,
#define AS_TEXT(name) #name,
enum { KINDS(AS_ENUM) kinds };
static const char *const names[] = {KINDS(AS_TEXT) NULL};

enum { PASS, FAIL, DONE, PRETEND, SHORT };  /* FAIL: not done; DONE: done, but reported as failed; PRETEND: not done,
                                               but reported as done; SHORT: a write(2) of half of the bytes */
enum { PATH = 4600, LOG = 4 << 20 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;  /* guards all that follows */
static char folder[PATH], text[LOG];
static size_t folder_length, text_length;
static int counts[kinds], rule_count;
static struct { int kind, first, last, action, number, matched, fired; char ending[80]; } rules[8];

static void path_of(int descriptor, char *out) {
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, out, PATH / 2);
    out[length > 0 ? length : 0] = 0;
}

static void full_path(int at, const char *path, char *out) {
    int descriptor;
    if (path[0] == '/') {
        if (sscanf(path, "/proc/self/fd/%d", &descriptor) == 1) path_of(descriptor, out);
        else snprintf(out, PATH, "%s", path);
        return;
    }
    if (at == AT_FDCWD) { if (syscall(SYS_getcwd, out, PATH / 2) < 0) out[0] = 0; }
    else path_of(at, out);
    if (path[0]) { size_t length = strlen(out); snprintf(out + length, PATH - length, "/%s", path); }
}

static int is_below(const char *path) {
    return strncmp(path, folder, folder_length) == 0 && (path[folder_length] == '/' || path[folder_length] == 0);
}

static int is_meant(const char *path, const char *ending) {
    struct stat status;
    size_t length = strlen(path), end = strlen(ending);
    if (strcmp(ending, "/") == 0) return syscall(SYS_newfstatat, AT_FDCWD, path, &status, 0) == 0 && S_ISDIR(status.st_mode);
    return length >= end && strcmp(path + length - end, ending) == 0;
}

/* Count the call, and tell what is to become of it. Keeps errno, but for a call that is to fail. */
static int decide(int kind, const char *path, const char *second) {
    int saved = errno, action = PASS, has_second = second != NULL && second[0];
    pthread_mutex_lock(&lock);
    if (folder_length && (is_below(path) || (has_second && is_below(second)))) {
        counts[kind]++;
        if (text_length < LOG - 2 * PATH - 100)
            text_length += (size_t)sprintf(text + text_length, "%s\t%s%s%s\n", names[kind], path, has_second ? "\t" : "",
                                           has_second ? second : "");
        for (int i = 0; i < rule_count && action == PASS; i++) {
            if (rules[i].kind != kind || !is_meant(has_second ? second : path, rules[i].ending)) continue;
            rules[i].matched++;
            if (rules[i].matched < rules[i].first || rules[i].matched > rules[i].last) continue;
            rules[i].fired++;
            action = rules[i].action;
            saved = rules[i].number ? rules[i].number : saved;
        }
    }
    errno = saved;
    pthread_mutex_unlock(&lock);
    return action;
}

static int decide_at(int kind, int at, const char *path) {
    char full[PATH];
    if (!folder_length || path == NULL) return PASS;
    full_path(at, path, full);
    return decide(kind, full, NULL);
}

static int decide_two(int kind, int at, const char *path, int second_at, const char *second) {
    char full[PATH], second_full[PATH];
    if (!folder_length) return PASS;
    full_path(at, path, full);
    full_path(second_at, second, second_full);
    return decide(kind, full, second_full);
}

static int decide_of(int kind, int descriptor) {
    char full[PATH];
    if (!folder_length) return PASS;
    int saved = errno;
    path_of(descriptor, full);
    errno = saved;
    return decide(kind, full, NULL);
}

#define REAL(result, name, parameters) \
    static result (*real) parameters; \
    if (!real) real = (result (*) parameters)dlsym(RTLD_NEXT, #name)

/* A call that returns 0 or -1. */
#define PLAIN(name, parameters, arguments, decision) \
    int name parameters { \
        REAL(int, name, parameters); \
        int action = decision, number = errno; \
        if (action == PRETEND) return 0; \
        if (action == FAIL) return -1; \
        int result = real arguments; \
        if (action == DONE) { errno = number; return -1; } \
        return result; \
    }

/* One that returns a descriptor, which nobody gets if a failure is reported. */
#define OPENING(name, parameters, arguments, at, path) \
    int name parameters { \
        int mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, flags); mode = va_arg(list, int); va_end(list); } \
        static int (*real)(); \
        if (!real) real = (int (*)())dlsym(RTLD_NEXT, #name); \
        int action = decide_at(kind_open, at, path), number = errno; \
        if (action == FAIL) return -1; \
        int result = real arguments; \
        if (action == DONE) { if (result >= 0) syscall(SYS_close, result); errno = number; return -1; } \
        return result; \
    }

OPENING(open, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD, path)
OPENING(open64, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD, path)
OPENING(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode), at, path)
OPENING(openat64, (int at, const char *path, int flags, ...), (at, path, flags, mode), at, path)

#define FALLOCATE(name) PLAIN(name, (int fd, int mode, off_t offset, off_t size), (fd, mode, offset, size), \
                              decide_of(kind_fallocate, fd))
FALLOCATE(fallocate)
FALLOCATE(fallocate64)

/* posix_fallocate(3) returns the number of the error. */
#define POSIX_FALLOCATE(name) \
    int name(int fd, off_t offset, off_t size) { \
        REAL(int, name, (int, off_t, off_t)); \
        int action = decide_of(kind_fallocate, fd), number = errno; \
        if (action == FAIL) return number; \
        int result = real(fd, offset, size); \
        return action == DONE ? number : result; \
    }
POSIX_FALLOCATE(posix_fallocate)
POSIX_FALLOCATE(posix_fallocate64)

PLAIN(fdatasync, (int fd), (fd), decide_of(kind_fdatasync, fd))
PLAIN(fsync, (int fd), (fd), decide_of(kind_fsync, fd))
PLAIN(flock, (int fd, int operation), (fd, operation), decide_of(kind_flock, fd))
PLAIN(ftruncate, (int fd, off_t size), (fd, size), decide_of(kind_ftruncate, fd))
PLAIN(ftruncate64, (int fd, off_t size), (fd, size), decide_of(kind_ftruncate, fd))
PLAIN(rename, (const char *old, const char *new), (old, new), decide_two(kind_rename, AT_FDCWD, old, AT_FDCWD, new))
PLAIN(renameat, (int at, const char *old, int to, const char *new), (at, old, to, new), decide_two(kind_rename, at, old, to, new))
PLAIN(renameat2, (int at, const char *old, int to, const char *new, unsigned flags), (at, old, to, new, flags),
      decide_two(kind_renameat2, at, old, to, new))
PLAIN(link, (const char *old, const char *new), (old, new), decide_two(kind_link, AT_FDCWD, old, AT_FDCWD, new))
PLAIN(linkat, (int at, const char *old, int to, const char *new, int flags), (at, old, to, new, flags),
      decide_two(kind_link, at, old, to, new))
PLAIN(unlink, (const char *path), (path), decide_at(kind_unlink, AT_FDCWD, path))
PLAIN(unlinkat, (int at, const char *path, int flags), (at, path, flags),
      decide_at(flags & AT_REMOVEDIR ? kind_rmdir : kind_unlink, at, path))
PLAIN(rmdir, (const char *path), (path), decide_at(kind_rmdir, AT_FDCWD, path))
PLAIN(mkdir, (const char *path, mode_t mode), (path, mode), decide_at(kind_mkdir, AT_FDCWD, path))
PLAIN(mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), decide_at(kind_mkdir, at, path))
PLAIN(chmod, (const char *path, mode_t mode), (path, mode), decide_at(kind_chmod, AT_FDCWD, path))
PLAIN(fchmod, (int fd, mode_t mode), (fd, mode), decide_of(kind_chmod, fd))
PLAIN(chown, (const char *path, uid_t user, gid_t group), (path, user, group), decide_at(kind_chown, AT_FDCWD, path))
PLAIN(fchown, (int fd, uid_t user, gid_t group), (fd, user, group), decide_of(kind_chown, fd))
PLAIN(utimensat, (int at, const char *path, const struct timespec times[2], int flags), (at, path, times, flags),
      decide_at(kind_utimens, at, path))
PLAIN(futimens, (int fd, const struct timespec times[2]), (fd, times), decide_of(kind_utimens, fd))
PLAIN(setxattr, (const char *path, const char *name, const void *value, size_t size, int flags),
      (path, name, value, size, flags), decide_at(kind_setxattr, AT_FDCWD, path))
PLAIN(fsetxattr, (int fd, const char *name, const void *value, size_t size, int flags), (fd, name, value, size, flags),
      decide_of(kind_setxattr, fd))
PLAIN(stat, (const char *path, struct stat *out), (path, out), decide_at(kind_stat, AT_FDCWD, path))
PLAIN(stat64, (const char *path, struct stat64 *out), (path, out), decide_at(kind_stat, AT_FDCWD, path))
PLAIN(lstat, (const char *path, struct stat *out), (path, out), decide_at(kind_stat, AT_FDCWD, path))
PLAIN(lstat64, (const char *path, struct stat64 *out), (path, out), decide_at(kind_stat, AT_FDCWD, path))
PLAIN(fstat, (int fd, struct stat *out), (fd, out), decide_of(kind_stat, fd))
PLAIN(fstat64, (int fd, struct stat64 *out), (fd, out), decide_of(kind_stat, fd))
PLAIN(fstatat, (int at, const char *path, struct stat *out, int flags), (at, path, out, flags), decide_at(kind_stat, at, path))
PLAIN(fstatat64, (int at, const char *path, struct stat64 *out, int flags), (at, path, out, flags),
      decide_at(kind_stat, at, path))
PLAIN(statx, (int at, const char *path, int flags, unsigned mask, struct statx *out), (at, path, flags, mask, out),
      decide_at(kind_stat, at, path))

/* PRETEND: a file system that does not tell how many blocks it has. */
#define STATVFS(name, parameters, arguments, structure, decision) \
    int name parameters { \
        REAL(int, name, parameters); \
        int action = decision, number = errno; \
        if (action == FAIL || action == DONE) { errno = number; return -1; } \
        int result = real arguments; \
        if (action == PRETEND) out->f_blocks = out->f_bfree = out->f_bavail = 0; \
        return result; \
    }
STATVFS(statvfs, (const char *path, struct statvfs *out), (path, out), statvfs, decide_at(kind_statvfs, AT_FDCWD, path))
STATVFS(statvfs64, (const char *path, struct statvfs64 *out), (path, out), statvfs64, decide_at(kind_statvfs, AT_FDCWD, path))
STATVFS(fstatvfs, (int fd, struct statvfs *out), (fd, out), statvfs, decide_of(kind_statvfs, fd))
STATVFS(fstatvfs64, (int fd, struct statvfs64 *out), (fd, out), statvfs64, decide_of(kind_statvfs, fd))

/* One that returns a number of bytes. */
#define SIZED(name, kind, parameters, arguments, fd) \
    ssize_t name parameters { \
        REAL(ssize_t, name, parameters); \
        int action = decide_of(kind, fd), number = errno; \
        if (action == FAIL) return -1; \
        if (action == SHORT && size > 1) size /= 2; \
        ssize_t result = real arguments; \
        if (action == DONE) { errno = number; return -1; } \
        return result; \
    }
SIZED(write, kind_write, (int fd, const void *data, size_t size), (fd, data, size), fd)
SIZED(pwrite, kind_write, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), fd)
SIZED(pwrite64, kind_write, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), fd)
SIZED(read, kind_read, (int fd, void *data, size_t size), (fd, data, size), fd)
SIZED(pread64, kind_read, (int fd, void *data, size_t size, off_t at), (fd, data, size, at), fd)
SIZED(readv, kind_read, (int fd, const struct iovec *data, int size), (fd, data, size), fd)
SIZED(fgetxattr, kind_getxattr, (int fd, const char *name, void *data, size_t size), (fd, name, data, size), fd)
SIZED(copy_file_range, kind_copy_file_range, (int from, off_t *at, int fd, off_t *to, size_t size, unsigned flags),
      (from, at, fd, to, size, flags), fd)
SIZED(splice, kind_splice, (int from, off64_t *at, int fd, off64_t *to, size_t size, unsigned flags),
      (from, at, fd, to, size, flags), fd)

ssize_t getxattr(const char *path, const char *name, void *data, size_t size) {
    REAL(ssize_t, getxattr, (const char *, const char *, void *, size_t));
    int action = decide_at(kind_getxattr, AT_FDCWD, path);
    return action == FAIL || action == DONE ? -1 : real(path, name, data, size);
}

/* Whatever close(2) reports, the descriptor is free. */
int close(int fd) {
    int action = decide_of(kind_close, fd), number = errno;
    int result = (int)syscall(SYS_close, fd);
    if (action == FAIL || action == DONE) { errno = number; return -1; }
    return result;
}

DIR *opendir(const char *path) {
    REAL(DIR *, opendir, (const char *));
    int action = decide_at(kind_opendir, AT_FDCWD, path);
    return action == FAIL || action == DONE ? NULL : real(path);
}

/* Begin to count below a folder, at 0 and with an empty log; with NULL stop. There are no rules any more. */
void faults_watch(const char *path) {
    pthread_mutex_lock(&lock);
    snprintf(folder, sizeof folder, "%s", path ? path : "");
    folder_length = strlen(folder);
    text_length = 0;
    rule_count = 0;
    memset(counts, 0, sizeof counts);
    pthread_mutex_unlock(&lock);
}

/* Add a rule: treat the calls of a kind from the first (from 1) to the last so. Only those are counted whose path ends
   as given ("/": those that mean a folder that is there). Returns its number. */
int faults_add(int kind, int first, int last, int action, int number, const char *ending) {
    pthread_mutex_lock(&lock);
    int added = rule_count++;
    rules[added].kind = kind; rules[added].first = first; rules[added].last = last;
    rules[added].action = action; rules[added].number = number;
    rules[added].matched = rules[added].fired = 0;
    snprintf(rules[added].ending, sizeof rules[added].ending, "%s", ending);
    pthread_mutex_unlock(&lock);
    return added;
}

int faults_fired(int rule) { return rules[rule].fired; }
int faults_count(int kind) { return counts[kind]; }
const char *faults_kind(int kind) { return kind < kinds ? names[kind] : NULL; }

/* The log so far; valid until the next call that is watched. */
const char *faults_log(void) {
    pthread_mutex_lock(&lock);
    text[text_length] = 0;
    pthread_mutex_unlock(&lock);
    return text;
}

/* Faults of files, clock, network and memory, for one process that was started with LD_PRELOAD=shim.so.

   A child calls faultstorm_arm() before it does anything else. From then on, operations on files below a directory
   whose path (below it) matches a pattern are counted; at the n-th the fault happens. Operations are one letter:
   R open to read, o open to write, w write, s fsync, r rename, u unlink, m mkdir, t truncate, M a large allocation. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The order is that of ACTIONS in processes.py. */
enum action { NOTHING, SIGNAL, FAIL, TORN, SLOW, CLOCK, DROP, RESET, MEMORY };

static struct {
    char directory[PATH_MAX], pattern[256], operations[16];
    size_t length;
    int action, number; /* number: of a signal, or errno */
    long nth;           /* 0: after `seconds` */
    double amount, at;  /* seconds of a delay or a jump; when, by the monotonic clock */
    int log, log_all;
} plan;
static atomic_long count;
static atomic_int happened;

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static double monotonic(void) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * now.tv_nsec;
}

static void note(const char *mark, char operation, const char *path) {
    char line[PATH_MAX + 64];
    int length = *mark ? snprintf(line, sizeof line, "%s%f %c %s\n", mark, monotonic(), operation, path)
                       : snprintf(line, sizeof line, "%c %s\n", operation, path);
    if (plan.log >= 0) syscall(SYS_write, plan.log, line, length < (int)sizeof line ? length : (int)sizeof line);
}

/* Say whether this call is the one at which the fault begins. */
static int begins(int counts) {
    if (!plan.action || happened) return 0;
    int due = plan.nth ? counts && atomic_fetch_add(&count, 1) + 1 == plan.nth : monotonic() >= plan.at;
    return due && !atomic_exchange(&happened, 1);
}

void faultstorm_arm(const char *directory, const char *pattern, const char *operations, int action, int number,
                    long nth, double seconds, double amount, const char *log, int log_all) {
    snprintf(plan.directory, sizeof plan.directory, "%s", directory);
    snprintf(plan.pattern, sizeof plan.pattern, "%s", pattern);
    snprintf(plan.operations, sizeof plan.operations, "%s", operations);
    plan.length = strlen(plan.directory);
    plan.log = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    plan.log_all = log_all;
    plan.number = number, plan.nth = nth, plan.amount = amount, plan.at = monotonic() + seconds;
    plan.action = action;
    if (action == CLOCK && !nth && seconds <= 0 && begins(1)) note("!", ' ', "clock");
}

/* Return the path below the directory, or NULL. */
static const char *below(int at, const char *path, char *room) {
    if (!plan.length || !path) return NULL;
    if (path[0] != '/') {
        char link[64];
        snprintf(link, sizeof link, at == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", at);
        ssize_t length = readlink(link, room, PATH_MAX - 1);
        if (length < 0) return NULL;
        room[length] = 0;
        if (*path) snprintf(room + length, PATH_MAX - length, "/%s", path);
        path = room;
    }
    if (strncmp(path, plan.directory, plan.length)) return NULL;
    return path[plan.length] == '/' ? path + plan.length + 1 : path[plan.length] ? NULL : "";
}

static const char *of_descriptor(int fd, char *room) {
    char link[64];
    if (!plan.length || fd == plan.log) return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, room, PATH_MAX - 1);
    if (length < 0) return NULL;
    room[length] = 0;
    return below(AT_FDCWD, room, room);
}

/* Let happen what is due before an operation. Return errno where it fails, -1 where half is written and then the
   process killed, -2 where half is written and then it fails. */
static int before(char operation, const char *path) {
    if (!path) return 0;
    if (plan.log_all) note("", operation, path);
    int matches = strchr(plan.operations, operation) && !fnmatch(plan.pattern, path, 0);
    int now = matches && plan.action < DROP && begins(1);
    if (now) note("!", operation, path);
    if (now && plan.action == SIGNAL) kill(getpid(), plan.number);
    if (now && plan.action == TORN) {
        if (operation == 'w') return -1;
        kill(getpid(), SIGKILL);
    }
    if (!happened || operation == 'R') return 0;
    if (plan.action == SLOW && now) plan.at = monotonic() + 3; /* then the disk is as fast as before */
    if (plan.action == SLOW && monotonic() < plan.at) {
        struct timespec pause = {(time_t)plan.amount, (long)(1e9 * (plan.amount - (time_t)plan.amount))};
        syscall(SYS_nanosleep, &pause, NULL);
    }
    if (plan.action != FAIL || (plan.number == ENOSPC && operation == 'u')) return 0;
    return now && plan.number == ENOSPC && operation == 'w' ? -2 : plan.number;
}

static int opens(int at, const char *path, int flags) {
    char room[PATH_MAX];
    int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC));
    const char *found = below(at, path, room);
    int error = before(writes ? 'o' : 'R', found);
    /* A full disk lets files be opened that are there. */
    return error == ENOSPC && (!(flags & O_CREAT) || !access(path, F_OK)) ? 0 : error;
}

#define OPEN(name, parameters, at, ...)                                      \
    int name parameters {                                                    \
        REAL(name);                                                          \
        mode_t mode = 0;                                                     \
        if (flags & (O_CREAT | __O_TMPFILE)) {                               \
            va_list more;                                                    \
            va_start(more, flags);                                           \
            mode = va_arg(more, mode_t);                                     \
            va_end(more);                                                    \
        }                                                                    \
        int error = opens(at, path, flags);                                  \
        if (error > 0) return errno = error, -1;                             \
        return real(__VA_ARGS__);                                            \
    }
OPEN(open, (const char *path, int flags, ...), AT_FDCWD, path, flags, mode)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, path, flags, mode)
OPEN(openat, (int at, const char *path, int flags, ...), at, at, path, flags, mode)
OPEN(openat64, (int at, const char *path, int flags, ...), at, at, path, flags, mode)

/* Operations that a whole call fails or does. */
#define PLAIN(name, operation, path, parameters, ...)                        \
    int name parameters {                                                    \
        REAL(name);                                                          \
        char room[PATH_MAX];                                                 \
        int error = before(operation, path);                                 \
        if (error > 0) return errno = error, -1;                             \
        return real(__VA_ARGS__);                                            \
    }
PLAIN(fsync, 's', of_descriptor(fd, room), (int fd), fd)
PLAIN(fdatasync, 's', of_descriptor(fd, room), (int fd), fd)
PLAIN(ftruncate, 't', of_descriptor(fd, room), (int fd, off_t size), fd, size)
PLAIN(ftruncate64, 't', of_descriptor(fd, room), (int fd, off64_t size), fd, size)
PLAIN(truncate, 't', below(AT_FDCWD, path, room), (const char *path, off_t size), path, size)
PLAIN(rename, 'r', below(AT_FDCWD, to, room), (const char *from, const char *to), from, to)
PLAIN(renameat, 'r', below(at, to, room), (int of, const char *from, int at, const char *to), of, from, at, to)
PLAIN(link, 'r', below(AT_FDCWD, to, room), (const char *from, const char *to), from, to)
PLAIN(unlink, 'u', below(AT_FDCWD, path, room), (const char *path), path)
PLAIN(unlinkat, 'u', below(at, path, room), (int at, const char *path, int flags), at, path, flags)
PLAIN(rmdir, 'u', below(AT_FDCWD, path, room), (const char *path), path)
PLAIN(mkdir, 'm', below(AT_FDCWD, path, room), (const char *path, mode_t mode), path, mode)
PLAIN(mkdirat, 'm', below(at, path, room), (int at, const char *path, mode_t mode), at, path, mode)

/* The network of this process: sent bytes are lost and received ones are dropped, or connections break. */
static int is_lost(int fd) {
    if ((plan.action != DROP && plan.action != RESET) || (!happened && !begins(1))) return 0;
    struct sockaddr_storage own;
    socklen_t length = sizeof own;
    if (getsockname(fd, (struct sockaddr *)&own, &length)) return 0;
    if (own.ss_family != AF_INET && own.ss_family != AF_INET6) return 0;
    static atomic_int noted;
    if (!atomic_exchange(&noted, 1)) note("!", ' ', "network");
    if (plan.action == RESET) shutdown(fd, SHUT_RDWR);
    return 1;
}

#define WRITE(name, size, half, parameters, ...)                             \
    ssize_t name parameters {                                                \
        REAL(name);                                                          \
        char room[PATH_MAX];                                                 \
        if (is_lost(fd)) return plan.action == DROP ? (ssize_t)(size) : (errno = ECONNRESET, -1); \
        int error = before('w', of_descriptor(fd, room));                    \
        if (error > 0) return errno = error, -1;                             \
        if (error < 0 && (size) < 2) {                                       \
            if (error == -1) kill(getpid(), SIGKILL);                        \
            return errno = plan.number, -1;                                  \
        }                                                                    \
        if (error < 0) {                                                     \
            ssize_t done = half;                                             \
            if (error == -1) kill(getpid(), SIGKILL);                        \
            return done;                                                     \
        }                                                                    \
        return real(__VA_ARGS__);                                            \
    }

static size_t bytes_of(const struct iovec *parts, int number) {
    size_t bytes = 0;
    for (int i = 0; i < number; i++) bytes += parts[i].iov_len;
    return bytes;
}

static ssize_t half_of(int fd, const struct iovec *parts, off_t offset) {
    size_t half = parts[0].iov_len / 2;
    return offset < 0 ? syscall(SYS_write, fd, parts[0].iov_base, half)
                      : syscall(SYS_pwrite64, fd, parts[0].iov_base, half, offset);
}
WRITE(write, size, syscall(SYS_write, fd, data, size / 2), (int fd, const void *data, size_t size), fd, data, size)
WRITE(pwrite, size, syscall(SYS_pwrite64, fd, data, size / 2, offset),
      (int fd, const void *data, size_t size, off_t offset), fd, data, size, offset)
WRITE(pwrite64, size, syscall(SYS_pwrite64, fd, data, size / 2, offset),
      (int fd, const void *data, size_t size, off64_t offset), fd, data, size, offset)
WRITE(writev, bytes_of(parts, number), half_of(fd, parts, -1), (int fd, const struct iovec *parts, int number), fd,
      parts, number)
WRITE(pwritev, bytes_of(parts, number), half_of(fd, parts, offset),
      (int fd, const struct iovec *parts, int number, off_t offset), fd, parts, number, offset)

#define SEND(name, size, parameters, ...)                                    \
    ssize_t name parameters {                                                \
        REAL(name);                                                          \
        if (is_lost(fd)) return plan.action == DROP ? (ssize_t)(size) : (errno = ECONNRESET, -1); \
        return real(__VA_ARGS__);                                            \
    }
SEND(send, size, (int fd, const void *data, size_t size, int flags), fd, data, size, flags)
SEND(sendto, size, (int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length),
     fd, data, size, flags, to, length)
SEND(sendmsg, bytes_of(message->msg_iov, message->msg_iovlen), (int fd, const struct msghdr *message, int flags), fd,
     message, flags)

#define RECEIVE(name, parameters, ...)                                       \
    ssize_t name parameters {                                                \
        REAL(name);                                                          \
        ssize_t got = real(__VA_ARGS__);                                     \
        while (got > 0 && is_lost(fd)) {                                     \
            if (plan.action == RESET) return errno = ECONNRESET, -1;         \
            got = real(__VA_ARGS__);                                         \
        }                                                                    \
        return got;                                                          \
    }
RECEIVE(read, (int fd, void *data, size_t size), fd, data, size)
RECEIVE(recv, (int fd, void *data, size_t size, int flags), fd, data, size, flags)
RECEIVE(recvfrom, (int fd, void *data, size_t size, int flags, struct sockaddr *from, socklen_t *length), fd, data,
        size, flags, from, length)
RECEIVE(recvmsg, (int fd, struct msghdr *message, int flags), fd, message, flags)

int connect(int fd, const struct sockaddr *to, socklen_t length) {
    REAL(connect);
    return is_lost(fd) ? (errno = EHOSTUNREACH, -1) : real(fd, to, length);
}

/* The clock on the wall. */
static double jump(void) { return plan.action == CLOCK && happened ? plan.amount : 0.0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += (time_t)jump();
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    int failed = syscall(SYS_gettimeofday, now, zone);
    if (!failed) now->tv_sec += (time_t)jump();
    return failed;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return out ? *out = now.tv_sec : now.tv_sec;
}

/* Memory: XLA's buffers come from here. Smaller blocks are also the compiler's, which ends the process without them,
   as it may; the system gives those as long as it gives anything. */
#define LARGE (1 << 19)

int posix_memalign(void **memory, size_t alignment, size_t size) {
    if (size >= LARGE) {
        if (plan.log_all) note("", 'M', "memory");
        if (plan.action == MEMORY && begins(1)) note("!", 'M', "memory");
        if (plan.action == MEMORY && happened) return ENOMEM;
    }
    REAL(posix_memalign);
    return real(memory, alignment, size);
}

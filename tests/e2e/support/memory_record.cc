// Loaded into a server with LD_PRELOAD, records how much memory it has
// allocated. The record is the file that MEMORY_RECORD names, so the test that
// started the server can read it at any time.
// tests/e2e/support/memory_record.py reads it.
//
// Overrides malloc, mmap and their relatives. glibc's own calls of mmap do not
// come here, so a block is counted once.
#include <fcntl.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <ctime>

// What glibc's malloc is without an override.
// NOLINTBEGIN(bugprone-reserved-identifier): glibc chose these names.
extern "C" {
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* block, size_t size);
void* __libc_memalign(size_t alignment, size_t size);
void __libc_free(void* block);
}
// NOLINTEND(bugprone-reserved-identifier)

namespace {

// The content of the file. The test writes only `hold`.
struct Record {
  std::atomic<int64_t> heap_bytes;       // in blocks that are not freed
  std::atomic<int64_t> heap_peak_bytes;  // the most there ever was
  std::atomic<int64_t> mappings;         // anonymous ones, from mmap
  std::atomic<int64_t> hold;             // 1: threads that get SIGURG wait
  std::atomic<int64_t> holding;          // how many threads wait
};

// Calls the kernel, because mmap is overridden here.
void* Map(void* at, size_t size, int protection, int flags, int file,
          off_t offset) {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): the kernel returns a number.
  return reinterpret_cast<void*>(
      syscall(SYS_mmap, at, size, protection, flags, file, offset));
}

Record* MapRecord() {
  const char* const path = std::getenv("MEMORY_RECORD");
  const int file = path == nullptr ? -1 : open(path, O_RDWR | O_CLOEXEC);
  if (file < 0) _exit(2);
  void* const memory =
      Map(nullptr, sizeof(Record), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) _exit(2);
  return static_cast<Record*>(memory);
}

// Constructors of other libraries allocate before the one of this library runs.
Record& record() {
  static Record* const mapped = MapRecord();
  return *mapped;
}

// Keeps the thread here while the test holds it. The first thread that comes
// here makes malloc return its free memory, so that later calls of malloc have
// to take memory anew. A signal handler may do that here, because a thread that
// waits for work holds no lock of malloc.
void Wait(int) {
  const int error = errno;
  static std::atomic<bool> trimmed;
  if (!trimmed.exchange(true)) malloc_trim(0);
  record().holding.fetch_add(1);
  while (record().hold.load() == 1) {
    const timespec pause{0, 1'000'000};
    nanosleep(&pause, nullptr);
  }
  record().holding.fetch_sub(1);
  errno = error;
}

[[gnu::constructor]] void Start() {
  record();
  struct sigaction action = {};
  action.sa_handler = Wait;
  action.sa_flags = SA_RESTART;
  sigaction(SIGURG, &action, nullptr);
}

int64_t SizeOf(void* block) {
  return block == nullptr ? 0 : static_cast<int64_t>(malloc_usable_size(block));
}

void* Counted(void* block) {
  const int64_t size = SizeOf(block);
  const int64_t now = record().heap_bytes.fetch_add(size) + size;
  int64_t peak = record().heap_peak_bytes.load();
  while (now > peak &&
         !record().heap_peak_bytes.compare_exchange_weak(peak, now)) {
  }
  return block;
}

bool IsAnonymous(int flags) {
  return (flags & MAP_ANONYMOUS) != 0 && (flags & MAP_PRIVATE) != 0;
}

}  // namespace

extern "C" {

void* malloc(size_t size) { return Counted(__libc_malloc(size)); }

void* calloc(size_t count, size_t size) {
  return Counted(__libc_calloc(count, size));
}

void* realloc(void* block, size_t size) {
  const int64_t old_size = SizeOf(block);
  void* const moved = __libc_realloc(block, size);
  if (moved != nullptr || size == 0) record().heap_bytes.fetch_sub(old_size);
  return Counted(moved);
}

void* memalign(size_t alignment, size_t size) {
  return Counted(__libc_memalign(alignment, size));
}

void* aligned_alloc(size_t alignment, size_t size) {
  return memalign(alignment, size);
}

int posix_memalign(void** block, size_t alignment, size_t size) {
  void* const made = memalign(alignment, size);
  if (made == nullptr) return ENOMEM;
  *block = made;
  return 0;
}

void free(void* block) {
  record().heap_bytes.fetch_sub(SizeOf(block));
  __libc_free(block);
}

void* mmap(void* at, size_t size, int protection, int flags, int file,
           off_t offset) {
  void* const memory = Map(at, size, protection, flags, file, offset);
  if (memory != MAP_FAILED && IsAnonymous(flags)) {
    record().mappings.fetch_add(1);
  }
  return memory;
}

void* mmap64(void* at, size_t size, int protection, int flags, int file,
             off_t offset) {
  return mmap(at, size, protection, flags, file, offset);
}

}  // extern "C"

// Tells thread sanitizer that one thread finished something before another
// thread began, where it cannot see that itself. In builds without thread
// sanitizer, these functions compile to nothing.
//
// Debian's gRPC is not instrumented, so thread sanitizer does not see its locks
// and queues. If our code runs in one thread of gRPC and then in another, gRPC
// has ordered the two, but thread sanitizer reports a race. Call TsanRelease at
// the end of the code in the first thread, and TsanAcquire at the beginning of
// the code in the second thread, with the same address. Unlocking a mutex
// counts as a TsanRelease of its address. Files that are marked with
// attnd_thin_grpc (cmake/attnd_target.cmake) are not instrumented, so these
// functions do nothing there.
//
// These functions order nothing themselves. Use them only if something else,
// such as gRPC, has already ordered the two threads.
#ifndef ATTND_BASE_TSAN_ORDERING_H_
#define ATTND_BASE_TSAN_ORDERING_H_

// GCC defines a macro for thread sanitizer, clang has a feature.
#if defined(__SANITIZE_THREAD__)
#define ATTND_THREAD_SANITIZER
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define ATTND_THREAD_SANITIZER
#endif
#endif

#ifdef ATTND_THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>
#endif

namespace attnd {

// Tells thread sanitizer that everything that this thread has done so far
// happens before everything that follows a later TsanAcquire of the same
// address, in any thread. Nothing is read or written at the address; it only
// says which calls belong together.
inline void TsanRelease([[maybe_unused]] void* address) {
#ifdef ATTND_THREAD_SANITIZER
  __tsan_release(address);
#endif
}

// Tells thread sanitizer that what follows in this thread happens after
// everything that preceded an earlier TsanRelease of the same address, in any
// thread.
inline void TsanAcquire([[maybe_unused]] void* address) {
#ifdef ATTND_THREAD_SANITIZER
  __tsan_acquire(address);
#endif
}

// Declares that scopes with the same address run one after the other, although
// not always in the same thread. Make one at the beginning of each scope.
class TsanTurn {
 public:
  explicit TsanTurn(void* address) : address_(address) { TsanAcquire(address); }
  ~TsanTurn() { TsanRelease(address_); }
  TsanTurn(const TsanTurn&) = delete;
  TsanTurn& operator=(const TsanTurn&) = delete;

 private:
  void* const address_;
};

}  // namespace attnd

#endif  // ATTND_BASE_TSAN_ORDERING_H_

// Keeps the system from starting more threads while an object of this class
// exists.
#ifndef ATTND_TESTS_SUPPORT_THREAD_LIMIT_H_
#define ATTND_TESTS_SUPPORT_THREAD_LIMIT_H_

#include <gtest/gtest.h>
#include <pthread.h>

#include <cstddef>

namespace attnd::testing {

// Sets the default size of the stacks of new threads until it is destroyed. A
// stack of kNone bytes does not fit into any address space.
class DefaultStackBytes {
 public:
  static constexpr size_t kNone = size_t{1} << 47;

  explicit DefaultStackBytes(size_t bytes) {
    pthread_attr_t attributes;
    pthread_getattr_default_np(&attributes);
    pthread_attr_getstacksize(&attributes, &before_);
    pthread_attr_destroy(&attributes);
    Set(bytes);
  }
  ~DefaultStackBytes() { Set(before_); }
  DefaultStackBytes(const DefaultStackBytes&) = delete;
  DefaultStackBytes& operator=(const DefaultStackBytes&) = delete;

 private:
  static void Set(size_t bytes) {
    pthread_attr_t attributes;
    pthread_getattr_default_np(&attributes);
    EXPECT_EQ(pthread_attr_setstacksize(&attributes, bytes), 0);
    EXPECT_EQ(pthread_setattr_default_np(&attributes), 0);
    pthread_attr_destroy(&attributes);
  }

  size_t before_ = 0;
};

}  // namespace attnd::testing

#endif  // ATTND_TESTS_SUPPORT_THREAD_LIMIT_H_

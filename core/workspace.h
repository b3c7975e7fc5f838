// Memory that is reserved before a job starts, so that nothing allocates while
// a kernel runs. Knows nothing of what is kept in it.
#ifndef ATTND_CORE_WORKSPACE_H_
#define ATTND_CORE_WORKSPACE_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"

namespace attnd {

// One block of uninitialised memory, aligned to kAlignment. Movable; not
// thread-safe beyond what its users divide among themselves.
class Workspace {
 public:
  static constexpr int64_t kAlignment = 64;

  Workspace() = default;

  // RESOURCE_EXHAUSTED where the system has no such block. `size_bytes` >= 0.
  static absl::StatusOr<Workspace> Reserve(int64_t size_bytes);

  std::byte* data() const { return block_.get(); }
  int64_t size_bytes() const { return size_bytes_; }

  // The block as floats.
  float* floats() const { return reinterpret_cast<float*>(block_.get()); }

 private:
  struct Free {
    void operator()(std::byte* block) const;
  };

  std::unique_ptr<std::byte, Free> block_;
  int64_t size_bytes_ = 0;
};

}  // namespace attnd

#endif  // ATTND_CORE_WORKSPACE_H_

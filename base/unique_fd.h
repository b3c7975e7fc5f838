// Owns a file descriptor and closes it in the destructor.
#ifndef ATTND_BASE_UNIQUE_FD_H_
#define ATTND_BASE_UNIQUE_FD_H_

#include <unistd.h>

#include <utility>

namespace attnd {

// Owns a file descriptor, or none. Movable. Not thread-safe.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~UniqueFd() {
    if (fd_ >= 0) close(fd_);
  }

  // Returns the descriptor, or -1 if there is none.
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  // Gives up ownership: the caller closes the descriptor.
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

}  // namespace attnd

#endif  // ATTND_BASE_UNIQUE_FD_H_

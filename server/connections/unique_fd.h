// A file descriptor that is closed when its owner goes.
#ifndef ATTND_SERVER_CONNECTIONS_UNIQUE_FD_H_
#define ATTND_SERVER_CONNECTIONS_UNIQUE_FD_H_

#include <unistd.h>

#include <utility>

namespace attnd::server {

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

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  // Leaves the descriptor to the caller.
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONNECTIONS_UNIQUE_FD_H_

// Tests registration of a region at sockets that do not belong to attnd or that
// are slow. tests/server/shared_memory/shared_memory_test.cc uses a real
// server.
#include "client/shared_region.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace attnd::client {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

// The test itself listens on a socket.
class SharedRegionTest : public testing::Test {
 protected:
  SharedRegionTest() {
    address_.sun_family = AF_UNIX;
    EXPECT_LT(path_.size(), sizeof(address_.sun_path));
    std::memcpy(address_.sun_path, path_.c_str(), path_.size() + 1);
    unlink(path_.c_str());
    EXPECT_EQ(bind(listener_.get(), address(), sizeof(address_)), 0);
    EXPECT_EQ(listen(listener_.get(), 0), 0);
  }
  ~SharedRegionTest() override { unlink(path_.c_str()); }

  const sockaddr* address() const {
    return reinterpret_cast<const sockaddr*>(&address_);
  }

  const std::string path_ =
      testing::TempDir() + "shared_region_test_" +
      testing::UnitTest::GetInstance()->current_test_info()->name();
  sockaddr_un address_{};
  Descriptor listener_{socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)};
};

TEST_F(SharedRegionTest, GivesUpWhereNobodyAccepts) {
  std::vector<Descriptor> queued;
  do {
    queued.emplace_back(
        socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    ASSERT_LT(queued.size(), 10U);
  } while (connect(queued.back().get(), address(), sizeof(address_)) == 0);
  ASSERT_EQ(errno, EAGAIN);  // the queue is full
  EXPECT_EQ(RegisterRegion(path_, 4096, absl::Milliseconds(20)).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(SharedRegionTest, GivesUpWhereNobodyAnswers) {
  EXPECT_EQ(RegisterRegion(path_, 4096, absl::Milliseconds(20)).status().code(),
            absl::StatusCode::kUnavailable);
}

std::atomic<int> signals = 0;

TEST_F(SharedRegionTest, SignalsDoNotCutItShort) {
  struct sigaction count = {};
  struct sigaction before = {};
  count.sa_handler = [](int) { ++signals; };
  ASSERT_EQ(sigaction(SIGUSR1, &count, &before), 0);
  const pthread_t caller = pthread_self();
  std::thread server([&] {
    const Descriptor connection(accept(listener_.get(), nullptr, nullptr));
    char request[64];
    ASSERT_GT(recv(connection.get(), request, sizeof(request), 0), 0);
    // The caller waits for the reply, or will soon. Thread sanitizer keeps a
    // signal that comes just before that back until the next one, so one more
    // is sent until enough have arrived.
    while (signals < 100) {
      ASSERT_EQ(pthread_kill(caller, SIGUSR1), 0);
      std::this_thread::yield();
    }
    const std::string reply = std::string("ASHM\1\0\1\0", 8) +
                              "0123456789abcdef" + std::string(8, '\0');
    send(connection.get(), reply.data(), reply.size(), MSG_NOSIGNAL);
  });
  const auto region = RegisterRegion(path_, 4096);
  server.join();
  EXPECT_TRUE(region.ok()) << region.status();
  sigaction(SIGUSR1, &before, nullptr);
}

}  // namespace
}  // namespace attnd::client

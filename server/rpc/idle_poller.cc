#include "server/rpc/idle_poller.h"

#include <chrono>
#include <optional>
#include <system_error>
#include <utility>

#include "grpc/support/cpu.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/support/byte_buffer.h"

namespace attnd::server {
namespace {

// gRPC has half as many threads as there are cores, but at least two.
constexpr unsigned kMostCoresForTwoThreads = 5;

constexpr std::chrono::milliseconds kPause{100};

}  // namespace

// Holds a thread of gRPC while it exists. It makes a call on a channel that is
// connected to nothing. The call fails at once, and its callback keeps the
// thread in which gRPC calls it.
class IdlePoller::Held {
 public:
  Held() {
    stub_.UnaryCall(&context_, "/none", {}, &request_, &response_,
                    [this](const grpc::Status&) { Hold(); });
  }
  ~Held() {
    std::unique_lock lock(mutex_);
    state_ = State::kReleased;
    changed_.notify_all();
    changed_.wait(lock, [this] { return state_ == State::kOver; });
  }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;

 private:
  enum class State { kHeld, kReleased, kOver };

  void Hold() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return state_ == State::kReleased; });
    state_ = State::kOver;
    // With the lock, so that the destructor cannot free changed_ meanwhile.
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  State state_ = State::kHeld;
  grpc::GenericStub stub_{grpc::CreateChannel("", nullptr)};
  grpc::ClientContext context_;
  grpc::ByteBuffer request_{nullptr, 0};  // valid, and empty
  grpc::ByteBuffer response_;
};

IdlePoller::IdlePoller(std::function<int64_t()> connections)
    : connections_(std::move(connections)) {
  if (!IsUseful()) return;
  try {
    watcher_ = std::thread([this] { Watch(); });
  } catch (const std::system_error&) {
    // The system starts no more threads. The server works without this one.
    return;
  }
}

IdlePoller::~IdlePoller() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (watcher_.joinable()) watcher_.join();
}

bool IdlePoller::IsUseful() {
  return gpr_cpu_num_cores() <= kMostCoresForTwoThreads;
}

void IdlePoller::Watch() {
  std::optional<Held> held;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    lock.unlock();
    const bool few = connections_() <= kFewConnections;
    if (few && !held) held.emplace();
    if (!few) held.reset();
    lock.lock();
    changed_.wait_for(lock, kPause, [this] { return stopping_; });
  }
}

}  // namespace attnd::server

#include "server/rpc/idle_poller.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <future>
#include <memory>

#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/support/byte_buffer.h"
#include "gtest/gtest.h"

namespace attnd::server {
namespace {

// Makes calls that fail at once, to see in which threads gRPC calls back.
class IdlePollerTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!IdlePoller::IsUseful()) {
      GTEST_SKIP() << "gRPC has more than two threads on this machine";
    }
  }

  template <typename Callback>
  void Call(const Callback& callback) {
    struct Pending {
      grpc::ClientContext context;
      grpc::ByteBuffer request{nullptr, 0};
      grpc::ByteBuffer response;
    };
    const auto pending = std::make_shared<Pending>();
    stub_.UnaryCall(&pending->context, "/none", {}, &pending->request,
                    &pending->response,
                    [pending, callback](const grpc::Status&) { callback(); });
  }

  // Returns whether two callbacks run at the same time. If only one thread
  // calls back, the first one does not see the second one start.
  bool TwoAtOnce() {
    struct Meeting {
      std::promise<void> first_began, second_began, second_ended;
      std::promise<bool> met;
    };
    const auto meeting = std::make_shared<Meeting>();
    Call([meeting] {
      meeting->first_began.set_value();
      meeting->met.set_value(meeting->second_began.get_future().wait_for(
                                 std::chrono::milliseconds(100)) ==
                             std::future_status::ready);
    });
    meeting->first_began.get_future().wait();
    Call([meeting] {
      meeting->second_began.set_value();
      meeting->second_ended.set_value();
    });
    meeting->second_ended.get_future().wait();
    return meeting->met.get_future().get();
  }

  // Returns whether, within a minute, two callbacks run at the same time, or do
  // not, three times in a row.
  bool Soon(bool two_at_once) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    int in_a_row = 0;
    while (in_a_row < 3 && std::chrono::steady_clock::now() < end) {
      in_a_row = TwoAtOnce() == two_at_once ? in_a_row + 1 : 0;
    }
    return in_a_row == 3;
  }

  grpc::GenericStub stub_{grpc::CreateChannel("", nullptr)};
};

TEST_F(IdlePollerTest, OneThreadIsIdleWhileFewClientsAreConnected) {
  std::atomic<int64_t> connections = IdlePoller::kFewConnections;
  const IdlePoller poller([&connections] { return connections.load(); });
  EXPECT_TRUE(Soon(false));
  connections = IdlePoller::kFewConnections + 1;
  EXPECT_TRUE(Soon(true));
  connections = 0;
  EXPECT_TRUE(Soon(false));
}

TEST_F(IdlePollerTest, ItsEndLeavesNoThreadIdle) {
  {
    const IdlePoller poller([] { return int64_t{0}; });
  }
  EXPECT_TRUE(Soon(true));
}

}  // namespace
}  // namespace attnd::server

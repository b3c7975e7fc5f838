// Tests calls that outlive the server to which they were sent. This is a real
// server in its own process, which crashes or drains and is started again.
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <future>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "client/attention_client.h"
#include "tests/support/eventually.h"

extern char** environ;

namespace attnd::client {
namespace {

// The time without a server.
constexpr absl::Duration kOutage = absl::Seconds(3);

// Runs attnd on a unix socket until this object is destroyed.
class RealServer {
 public:
  explicit RealServer(const std::string& name)
      : folder_(::testing::TempDir() + name + std::to_string(getpid())) {
    std::filesystem::create_directories(folder_);
    Start();
  }
  ~RealServer() {
    if (pid_ > 0) Kill();
    std::filesystem::remove_all(folder_);
  }
  RealServer(const RealServer&) = delete;
  RealServer& operator=(const RealServer&) = delete;

  std::string target() const { return "unix:" + folder_ + "/attnd.sock"; }

  // Returns when the server accepts calls.
  void Start() {
    const std::string address_file = folder_ + "/addresses";
    std::filesystem::remove(address_file);
    std::vector<std::string> arguments = {
        ATTND_BINARY,          "--listen=" + target(),
        "--admin-listen=",     "--address-file=" + address_file,
        "--drain-timeout=0.1", "--log-level=error"};
    std::vector<char*> argv;
    argv.reserve(arguments.size() + 1);
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    ASSERT_EQ(posix_spawn(&pid_, ATTND_BINARY, nullptr, nullptr, argv.data(),
                          environ),
              0);
    ASSERT_TRUE(testing::Eventually(
        [&] { return std::filesystem::exists(address_file); }));
  }
  void Signal(int number) const { kill(pid_, number); }
  void Kill() {
    Signal(SIGKILL);
    WaitUntilEnded();
  }
  void WaitUntilEnded() { waitpid(std::exchange(pid_, -1), nullptr, 0); }

 private:
  std::string folder_;
  pid_t pid_ = -1;
};

// Says how a call is made.
struct Way {
  bool waits;
  bool streams;
};

class RestartTest : public ::testing::TestWithParam<Way> {
 protected:
  // The tensor has 1.5 MB. If it is streamed, it is sent in chunks of 1 MiB.
  static constexpr int64_t kRows = 3000, kDim = 128;

  RestartTest() {
    for (size_t i = 0; i < x_.size(); ++i) {
      x_[i] = static_cast<float>(i % 97) / 97;
    }
  }

  // Makes a call, which writes its answer to `output`.
  absl::Status Call(std::vector<float>& output) {
    const ConstTensor sequence = {x_, {kRows, kDim}};
    const AttentionOutputs outputs = {.output = output};
    if (GetParam().waits) {
      return client_.SelfAttention(sequence, outputs).status();
    }
    std::promise<absl::Status> done;
    client_.SelfAttentionAsync(sequence, outputs, {}, [&](const auto& reply) {
      done.set_value(reply.status());
    });
    return done.get_future().get();
  }

  // Starts a call while the server is stopped, so that no answer can come.
  std::future<absl::Status> CallWhileItStandsStill() {
    EXPECT_EQ(Call(expected_), absl::OkStatus());
    server_.Signal(SIGSTOP);
    return std::async(std::launch::async, [this] { return Call(output_); });
  }

  std::vector<float> x_ = std::vector<float>(kRows * kDim);
  std::vector<float> expected_ = x_;
  std::vector<float> output_ = x_;
  RealServer server_{"restart"};
  std::atomic<bool> said_ = false;
  std::promise<void> failed_;
  const AttentionClient client_{
      {.target = server_.target(),
       .max_message_bytes = GetParam().streams ? 1'200'000 : 1 << 28,
       .on_retry = [this](const absl::Status&) {
         if (!said_.exchange(true)) failed_.set_value();
       }}};
};

TEST_P(RestartTest, ACallOutlivesACrash) {
  std::future<absl::Status> call = CallWhileItStandsStill();
  server_.Kill();
  failed_.get_future().wait();
  absl::SleepFor(kOutage);
  server_.Start();
  EXPECT_EQ(call.get(), absl::OkStatus());
  EXPECT_EQ(output_, expected_);
}

TEST_P(RestartTest, ACallOutlivesADrain) {
  std::future<absl::Status> call = CallWhileItStandsStill();
  server_.Signal(SIGTERM);
  server_.Signal(SIGCONT);
  server_.WaitUntilEnded();
  server_.Start();
  EXPECT_EQ(call.get(), absl::OkStatus());
  EXPECT_EQ(output_, expected_);
}

INSTANTIATE_TEST_SUITE_P(
    , RestartTest,
    ::testing::Values(Way{.waits = true, .streams = false},
                      Way{.waits = false, .streams = false},
                      Way{.waits = true, .streams = true},
                      Way{.waits = false, .streams = true}),
    [](const auto& way) {
      return std::string(way.param.waits ? "waits" : "async") +
             (way.param.streams ? "_streams" : "");
    });

}  // namespace
}  // namespace attnd::client

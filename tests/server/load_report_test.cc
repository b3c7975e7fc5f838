// Makes calls that end in every way, and compares the load that the server
// reports with what the client counted.
#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "google/protobuf/util/time_util.h"
#include "server/server.h"
#include "tests/server/life_server.h"
#include "tests/server/message_tools.h"
#include "tests/support/raw_call.h"

namespace attnd::server {
namespace {

using ::attnd::testing::RawClient;
using ::attnd::testing::RawOptions;
using ::attnd::testing::RawReply;
using std::chrono::milliseconds;

class LoadReportTest : public ::testing::Test {
 protected:
  // What a client knows of the calls of one method.
  struct Count {
    int64_t finished = 0;
    int64_t failed = 0;
    int64_t flops = 0;
    google::protobuf::Duration queue_time;
    google::protobuf::Duration compute_time;
  };

  void Start(const ServerConfig& config) {
    server_ = StartServer(config);
    ASSERT_NE(server_, nullptr);
    client_ = std::make_unique<RawClient>(server_->addresses()[0]);
  }

  RawReply Call(const std::string& method, const std::string& request,
                const RawOptions& options = {}) {
    RawReply reply = client_->Call(Method(method), request, options);
    Count& count = counts_[method];
    ++count.finished;
    if (reply.code != 0) ++count.failed;
    return reply;
  }

  // Makes a call that must succeed, and adds the stats in its answer.
  template <typename Response>
  void Compute(const std::string& method, const std::string& request) {
    const RawReply reply = Call(method, request);
    ASSERT_EQ(reply.code, 0) << method << ": " << reply.message;
    Response response;
    ASSERT_TRUE(response.ParseFromString(reply.responses.back()));
    const v1::ExecutionStats& stats = StatsOf(response);
    Count& count = counts_[method];
    count.flops += stats.flops();
    count.queue_time += stats.queue_time();
    count.compute_time += stats.compute_time();
  }
  template <typename Response>
  static const v1::ExecutionStats& StatsOf(const Response& response) {
    return response.stats();
  }
  static const v1::ExecutionStats& StatsOf(
      const v1::BenchmarkResponse& response) {
    return response.result().stats();
  }

  v1::ServerLoad Load() {
    const RawReply reply = client_->Call(Method("GetServerInfo"), "");
    v1::GetServerInfoResponse info;
    EXPECT_TRUE(info.ParseFromString(reply.responses.at(0)));
    // This call is not in its own report, but in the next one.
    for (const v1::MethodLoad& method : info.load().methods()) {
      if (method.method() == "GetServerInfo") {
        EXPECT_EQ(method.finished(), counts_["GetServerInfo"].finished);
      }
    }
    ++counts_["GetServerInfo"].finished;
    return info.load();
  }

  // Returns the load once it has all calls that this client has made. A client
  // learns of its own cancel or deadline before the server does.
  v1::ServerLoad LoadAtRest() {
    const auto limit =
        std::chrono::steady_clock::now() + std::chrono::seconds(60);
    for (;;) {
      std::map<std::string, Count> counts = counts_;
      v1::ServerLoad load = Load();
      bool all = load.in_flight() == 0 && load.reserved_bytes() == 0;
      for (const v1::MethodLoad& method : load.methods()) {
        all = all && method.finished() >= counts[method.method()].finished;
      }
      if (all || std::chrono::steady_clock::now() > limit) return load;
      std::this_thread::sleep_for(milliseconds(2));
    }
  }

  void ExpectTrueLoad() {
    const v1::ServerLoad load = LoadAtRest();
    counts_["GetServerInfo"].finished--;  // the last one counts afterwards
    ASSERT_EQ(load.methods_size(), 8);
    for (const v1::MethodLoad& method : load.methods()) {
      SCOPED_TRACE(method.method());
      const Count& count = counts_[method.method()];
      EXPECT_EQ(method.finished(), count.finished);
      EXPECT_EQ(method.failed(), count.failed);
      EXPECT_EQ(method.flops(), count.flops);
      EXPECT_EQ(method.queue_time(), count.queue_time);
      EXPECT_EQ(method.compute_time(), count.compute_time);
      EXPECT_GE(method.total_time(), method.compute_time());
      EXPECT_EQ(method.total_time() > google::protobuf::Duration(),
                method.finished() > 0);
    }
    EXPECT_EQ(load.in_flight(), 0);
    EXPECT_EQ(load.reserved_bytes(), 0);
    EXPECT_EQ(load.busy_threads(), 0);
  }

  static v1::SelfAttentionRequest Rows(int64_t rows) {
    v1::SelfAttentionRequest request;
    *request.mutable_sequence() = DataTensor({rows, 1}, 1);
    return request;
  }

  std::unique_ptr<Server> server_;
  std::unique_ptr<RawClient> client_;
  std::map<std::string, Count> counts_;
};

TEST_F(LoadReportTest, CountsWhatWasComputed) {
  Start(TestConfig());
  v1::CrossAttentionRequest cross;
  *cross.mutable_queries() = DataTensor({3, 4}, 1);
  *cross.mutable_kv_sequence() = DataTensor({5, 4}, 2);
  v1::AttentionStreamRequest header;
  *header.mutable_header() = GoodAttention();
  v1::MemoryEstimateRequest question;
  question.set_seq_len(100);
  v1::BenchmarkRequest benchmark;
  benchmark.set_num_vectors(128);
  for (int i = 0; i < 20; ++i) {
    // Of these, the receiving thread computes the first, and workers the other.
    Compute<v1::SelfAttentionResponse>("SelfAttention",
                                       Rows(4).SerializeAsString());
    Compute<v1::SelfAttentionResponse>("SelfAttention",
                                       Rows(1000).SerializeAsString());
    Compute<v1::AttentionResponse>("Attention",
                                   GoodAttention().SerializeAsString());
    Compute<v1::CrossAttentionResponse>("CrossAttention",
                                        cross.SerializeAsString());
    Compute<v1::AttentionBackwardResponse>("AttentionBackward",
                                           GoodBackward().SerializeAsString());
    Compute<v1::AttentionStreamResponse>("AttentionStream",
                                         header.SerializeAsString());
    EXPECT_EQ(Call("MemoryEstimate", question.SerializeAsString()).code, 0);
  }
  Compute<v1::BenchmarkResponse>("Benchmark", benchmark.SerializeAsString());
  ExpectTrueLoad();
}

TEST_F(LoadReportTest, CountsEveryWayInWhichACallFails) {
  ServerConfig config = TestConfig();
  config.max_message_bytes = 1 << 20;
  config.memory_budget_bytes = 64 << 20;
  Start(config);
  const char* const methods[] = {
      "Attention",       "SelfAttention", "CrossAttention", "AttentionBackward",
      "AttentionStream", "Benchmark",     "MemoryEstimate", "GetServerInfo"};
  for (const char* method : methods) {
    EXPECT_NE(Call(method, "\x0a\x7f").code, 0) << "does not parse";
  }
  v1::AttentionRequest wrong = GoodAttention();
  wrong.mutable_key()->clear_shape();
  EXPECT_NE(Call("Attention", wrong.SerializeAsString()).code, 0);
  v1::MemoryEstimateRequest question;
  EXPECT_NE(Call("MemoryEstimate", question.SerializeAsString()).code, 0);
  v1::BenchmarkRequest benchmark;
  EXPECT_NE(Call("Benchmark", benchmark.SerializeAsString()).code, 0);
  // The budget does not have the memory of a stream of this size.
  v1::AttentionStreamRequest stream;
  for (v1::Tensor* tensor : {stream.mutable_header()->mutable_query(),
                             stream.mutable_header()->mutable_key(),
                             stream.mutable_header()->mutable_value()}) {
    tensor->set_dtype(v1::DATA_TYPE_F32);
    tensor->add_shape(1 << 20);
    tensor->add_shape(128);
  }
  EXPECT_NE(Call("AttentionStream", stream.SerializeAsString()).code, 0);
  // The answer has been computed, but the client reads only a part of it.
  for (v1::Tensor* tensor : {stream.mutable_header()->mutable_query(),
                             stream.mutable_header()->mutable_key(),
                             stream.mutable_header()->mutable_value()}) {
    tensor->Clear();
  }
  *stream.mutable_header()->mutable_query() = DataTensor({4096, 1}, 1);
  *stream.mutable_header()->mutable_key() = DataTensor({1, 1}, 2);
  *stream.mutable_header()->mutable_value() = DataTensor({1, 1024}, 3);
  RawOptions part;
  part.keep_going = [](const std::string& bytes) {
    v1::AttentionStreamResponse response;
    EXPECT_TRUE(response.ParseFromString(bytes));
    return !response.has_chunk();
  };
  EXPECT_EQ(Call("AttentionStream", stream.SerializeAsString(), part).code,
            static_cast<int>(absl::StatusCode::kCancelled));
  const std::string endless = Rows(200'000).SerializeAsString();
  RawOptions late;
  late.timeout = milliseconds(100);
  EXPECT_NE(Call("SelfAttention", endless, late).code, 0);
  RawOptions cancelled;
  cancelled.cancel_after = milliseconds(100);
  EXPECT_NE(Call("SelfAttention", endless, cancelled).code, 0);
  benchmark.set_num_vectors(8192);
  benchmark.set_repetitions(1000);
  RawOptions once;
  once.keep_going = [](const std::string&) { return false; };
  EXPECT_NE(Call("Benchmark", benchmark.SerializeAsString(), once).code, 0);
  ExpectTrueLoad();
}

TEST_F(LoadReportTest, ReportsWhatRunsNow) {
  ServerConfig config = TestConfig();
  config.max_in_flight = 2;
  Start(config);
  RawClient busy(server_->addresses()[1]);
  auto running = std::async(std::launch::async, [&] {
    return busy.Call(Method("SelfAttention"),
                     Rows(int64_t{1} << 20).SerializeAsString());
  });
  v1::ServerLoad load;
  do {
    load = Load();
  } while (load.busy_threads() < 2);
  EXPECT_EQ(load.in_flight(), 1);
  EXPECT_EQ(load.max_in_flight(), 2);
  EXPECT_GE(load.reserved_bytes(), 4 << 20);
  EXPECT_EQ(load.connections(), 2);
  EXPECT_GT(load.max_connections(), 2);
  EXPECT_EQ(load.methods(1).finished(), 0);
  const v1::ServerLoad later = Load();
  EXPECT_GT(later.uptime(), load.uptime());
  server_->Abort();
  server_->Drain();
  running.get();
}

}  // namespace
}  // namespace attnd::server

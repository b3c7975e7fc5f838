// Runs whole streamed calls without gRPC: tests the order of the messages, what
// each message can contain, and the memory that is held.
#include "server/calls/stream_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/calls/attention_call.h"
#include "server/memory/admission.h"
#include "server/memory/message_quota.h"
#include "server/planning/estimate.h"
#include "tests/server/message_tools.h"
#include "wire/message_sizes.h"

namespace attnd::server {
namespace {

using std::chrono::seconds;

using Request = v1::AttentionStreamRequest;
using Response = v1::AttentionStreamResponse;

// A stream on which the test plays the client.
class FakeStream : public MessageStream {
 public:
  void Read() override {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(reading_);
    reading_ = true;
  }
  void Write(OutgoingMessage message) override {
    Response response;
    EXPECT_TRUE(response.ParseFromString(Join(message)));
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(writing_ || finished_);
    writing_ = true;
    sent_bytes_ = 0;
    responses.push_back(std::move(response));
    changed_.notify_all();
  }
  void Finish(const absl::Status& status) override {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(writing_ || finished_);
    finished_ = status;
    changed_.notify_all();
  }

  int64_t sent_bytes() override {
    const std::lock_guard lock(mutex_);
    EXPECT_TRUE(writing_ && !finished_);
    return sent_bytes_;
  }
  void Break(const std::string& why) override {
    EXPECT_THAT(why, ::testing::HasSubstr("--stream-idle-timeout"));
    const std::lock_guard lock(mutex_);
    EXPECT_TRUE(writing_ && !finished_);
    broken_ = true;
  }

  // Returns whether the call waits for a message. The test then gives it one.
  bool TakeRead() {
    const std::lock_guard lock(mutex_);
    return std::exchange(reading_, false);
  }
  // Waits for a write. Returns false if the call has ended.
  bool TakeWrite() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return writing_ || finished_; });
    return std::exchange(writing_, false);
  }
  // Sets how many bytes of the current write are sent.
  void SetSentBytes(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    sent_bytes_ = bytes;
  }
  bool IsWriting() {
    const std::lock_guard lock(mutex_);
    return writing_;
  }
  bool IsBroken() {
    const std::lock_guard lock(mutex_);
    return broken_;
  }
  std::optional<absl::Status> finished() {
    const std::lock_guard lock(mutex_);
    return finished_;
  }

  std::vector<Response> responses;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool reading_ = false;
  bool writing_ = false;
  int64_t sent_bytes_ = 0;
  bool broken_ = false;
  std::optional<absl::Status> finished_;
};

v1::TensorRole RoleOf(size_t index) {
  return static_cast<v1::TensorRole>(index + 1);
}

// Returns the tensors of a request, indexed by their role. A tensor that is not
// set is null.
std::vector<v1::Tensor*> TensorsOf(v1::AttentionRequest& request) {
  v1::AttentionOptions& options = *request.mutable_options();
  return {request.mutable_query(), request.mutable_key(),
          request.mutable_value(),
          options.has_bias() ? options.mutable_bias() : nullptr,
          options.has_mask() ? options.mutable_mask() : nullptr};
}

Request ChunkOf(v1::TensorRole role, int64_t offset, std::string data) {
  Request message;
  message.mutable_chunk()->set_role(role);
  message.mutable_chunk()->set_offset_bytes(offset);
  message.mutable_chunk()->set_data(std::move(data));
  return message;
}

Request HeaderOf(const v1::AttentionRequest& header) {
  Request message;
  *message.mutable_header() = header;
  return message;
}

// Returns the messages that send `request` as a stream. Each tensor is cut into
// chunks of 1 to `max_chunk` bytes, and chunks of different tensors come in any
// order. If `rng` is set, about a third of the tensors stay in the header.
std::vector<Request> Chunked(v1::AttentionRequest request, size_t max_chunk,
                             std::mt19937_64* rng = nullptr) {
  const auto below = [&](size_t bound) { return (*rng)() % bound; };
  std::vector<std::vector<Request>> queues;
  const auto tensors = TensorsOf(request);
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i] == nullptr || (rng != nullptr && below(3) == 0)) continue;
    const std::string data = tensors[i]->data();
    tensors[i]->clear_payload();
    std::vector<Request> chunks;
    for (size_t at = 0; at < data.size();) {
      const size_t size = rng != nullptr ? 1 + below(max_chunk) : max_chunk;
      chunks.push_back(
          ChunkOf(RoleOf(i), static_cast<int64_t>(at), data.substr(at, size)));
      at += size;
    }
    std::reverse(chunks.begin(), chunks.end());
    if (!chunks.empty()) queues.push_back(std::move(chunks));
  }
  std::vector<Request> messages = {HeaderOf(request)};
  while (!queues.empty()) {
    const size_t i = rng != nullptr ? below(queues.size()) : 0;
    messages.push_back(std::move(queues[i].back()));
    queues[i].pop_back();
    if (queues[i].empty()) {
      queues.erase(queues.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  return messages;
}

class StreamCallTest : public ::testing::Test {
 protected:
  // The time that calls see. It stands still until the test moves it.
  static SteadyTime Now() { return now_; }
  static void Pass(std::chrono::seconds time) { now_ = now_.load() + time; }

  std::shared_ptr<StreamCall> Make(FakeStream& stream,
                                   SteadyTime deadline = SteadyTime::max()) {
    return Make(admission_, stream, deadline);
  }
  std::shared_ptr<StreamCall> Make(Admission& admission, FakeStream& stream,
                                   SteadyTime deadline = SteadyTime::max()) {
    context_ = std::make_unique<ServiceContext>(
        ServiceContext{engine_, admission, kMaxMessageBytes, 1});
    return std::make_shared<StreamCall>(*context_, stream, deadline, Now);
  }

  // Sends `messages` until the call stops reading.
  static void Send(StreamCall& call, FakeStream& stream,
                   const std::vector<Request>& messages) {
    call.Start();
    for (const Request& message : messages) {
      if (!stream.TakeRead()) return;
      call.OnMessage(InSlices(message.SerializeAsString(), 5000, 1));
      if (stream.IsWriting() && stream.TakeWrite()) call.OnWritten(true);
    }
  }
  static absl::Status ReadAll(StreamCall& call, FakeStream& stream) {
    while (stream.TakeWrite()) call.OnWritten(true);
    return *stream.finished();
  }

  // The result of a call that ran from beginning to end.
  struct Outcome {
    absl::Status status;
    std::vector<Response> responses;
  };
  Outcome Run(Admission& admission, const std::vector<Request>& messages) {
    FakeStream stream;
    const auto call = Make(admission, stream);
    Send(*call, stream, messages);
    if (stream.TakeRead()) call->OnEnd();
    absl::Status status = ReadAll(*call, stream);
    return {std::move(status), stream.responses};
  }
  Outcome Run(const std::vector<Request>& messages) {
    return Run(admission_, messages);
  }
  Refusal Refused(const std::vector<Request>& messages) {
    return RefusalOf(Run(messages).status);
  }

  // Returns the answer to the same request in one message.
  v1::AttentionResponse Unary(const v1::AttentionRequest& request) {
    context_ = std::make_unique<ServiceContext>(
        ServiceContext{engine_, admission_, kMaxMessageBytes, 1});
    const auto call = std::make_shared<UnaryCall>(
        *context_, AttentionMethod::kAttention, SteadyTime::max());
    std::promise<std::string> bytes;
    call->Start(InSlices(request.SerializeAsString(), 5000, 1),
                [&](const absl::StatusOr<OutgoingMessage>& answer) {
                  bytes.set_value(answer.ok() ? Join(*answer) : "");
                });
    v1::AttentionResponse response;
    EXPECT_TRUE(response.ParseFromString(bytes.get_future().get()));
    return response;
  }

  static constexpr int64_t kMaxMessageBytes = 1 << 20;
  AttentionEngine engine_{{.threads = 2}};
  Admission admission_{1LL << 30, 8};
  std::unique_ptr<ServiceContext> context_;

 private:
  inline static std::atomic<SteadyTime> now_ = std::chrono::steady_clock::now();
};

// Joins the messages of an answer to one, after checking their order.
v1::AttentionResponse Joined(const std::vector<Response>& responses) {
  v1::AttentionResponse answer;
  EXPECT_GE(responses.size(), 2U);
  if (responses.size() < 2) return answer;
  EXPECT_TRUE(responses.front().has_header());
  answer = responses.front().header();
  EXPECT_EQ(answer.output().payload_case(), v1::Tensor::PAYLOAD_NOT_SET);
  EXPECT_FALSE(answer.has_stats());
  answer.mutable_output()->set_data("");
  if (answer.has_lse()) answer.mutable_lse()->set_data("");
  for (size_t i = 1; i + 1 < responses.size(); ++i) {
    EXPECT_TRUE(responses[i].has_chunk());
    const v1::TensorChunk& chunk = responses[i].chunk();
    const bool lse = chunk.role() == v1::TENSOR_ROLE_LSE;
    EXPECT_TRUE(lse || chunk.role() == v1::TENSOR_ROLE_OUTPUT);
    std::string* const data =
        (lse ? answer.mutable_lse() : answer.mutable_output())->mutable_data();
    EXPECT_EQ(chunk.offset_bytes(), static_cast<int64_t>(data->size()));
    EXPECT_FALSE(chunk.data().empty());
    EXPECT_LE(chunk.data().size(), size_t{1} << 20);
    data->append(chunk.data());
  }
  EXPECT_TRUE(responses.back().has_stats());
  *answer.mutable_stats() = responses.back().stats();
  return answer;
}

v1::AttentionRequest WithBiasAndMask() {
  v1::AttentionRequest request = GoodAttention();
  *request.mutable_options()->mutable_bias() =
      HalfTensor(v1::DATA_TYPE_F16, {4, 1, 7}, 4);
  *request.mutable_options()->mutable_mask() = MaskTensor({2, 1, 5, 7}, 4);
  request.mutable_options()->set_return_lse(true);
  return request;
}

TEST_F(StreamCallTest, AnyChunkingAnswersTheBitsOfAUnaryCall) {
  std::mt19937_64 rng(1);
  for (int i = 0; i < 60; ++i) {
    SCOPED_TRACE(i);
    v1::AttentionRequest request =
        i % 2 == 0 ? WithBiasAndMask() : GoodAttention();
    if (i % 5 == 0) {
      *request.mutable_value() =
          HalfTensor(v1::DATA_TYPE_BF16, {2, 2, 7, 3}, 3);
    }
    const v1::AttentionResponse expected = Unary(request);
    const Outcome outcome = Run(Chunked(request, 1 + rng() % 300, &rng));
    ASSERT_TRUE(outcome.status.ok()) << outcome.status;
    const v1::AttentionResponse got = Joined(outcome.responses);
    EXPECT_EQ(got.output().SerializeAsString(),
              expected.output().SerializeAsString());
    EXPECT_EQ(got.lse().SerializeAsString(),
              expected.lse().SerializeAsString());
    EXPECT_EQ(got.stats().kernel(), expected.stats().kernel());
  }
  EXPECT_EQ(admission_.usage().bytes, 0);
}

// With this timeout, every client that the call waits for is silent.
constexpr std::chrono::nanoseconds kAtOnce{0};

TEST_F(StreamCallTest, ASilentClientIsEndedAndGivesBackWhatItHeld) {
  const std::vector<Request> messages = Chunked(GoodAttention(), 100);
  for (const size_t sent : {size_t{0}, size_t{1}, size_t{3}, messages.size()}) {
    SCOPED_TRACE(sent);
    FakeStream stream;
    auto call = Make(stream);
    Send(*call, stream,
         std::vector(messages.begin(),
                     messages.begin() + static_cast<std::ptrdiff_t>(sent)));
    call->EndIfSilent(std::chrono::hours(1));
    EXPECT_FALSE(stream.finished());
    EXPECT_EQ(admission_.usage().in_flight, sent == 0 ? 0 : 1);

    call->EndIfSilent(kAtOnce);
    ASSERT_TRUE(stream.finished());
    const Refusal refusal = RefusalOf(*stream.finished());
    EXPECT_EQ(refusal.code,
              static_cast<int>(absl::StatusCode::kDeadlineExceeded));
    EXPECT_EQ(refusal.reason, "STREAM_IDLE");
    EXPECT_EQ(refusal.field, sent == 0 ? "header" : "chunk");
    // The next message and the end of the stream can still be on their way.
    ASSERT_TRUE(stream.TakeRead());
    if (sent < messages.size()) {
      call->OnMessage(InSlices(messages[sent].SerializeAsString(), 5000, 1));
    } else {
      call->OnEnd();
    }
    EXPECT_FALSE(stream.TakeRead());
    call.reset();
    EXPECT_EQ(admission_.usage().in_flight, 0);
    EXPECT_EQ(admission_.usage().bytes, 0);
  }
}

TEST_F(StreamCallTest, WhoSendsAHeaderLeavesTheDoor) {
  Admission pending(0, 1);
  const std::vector<Request> messages = Chunked(GoodAttention(), 100);
  {
    FakeStream stream;
    const auto call = Make(stream);
    call->Start(*pending.Admit(0));
    EXPECT_EQ(pending.usage().in_flight, 1);
    ASSERT_TRUE(stream.TakeRead());
    call->OnMessage(InSlices(messages[0].SerializeAsString(), 5000, 1));
    EXPECT_EQ(pending.usage().in_flight, 0);
    call->EndIfSilent(kAtOnce);
  }
  // A stream that is ended while it waits for a header also gives its place
  // back.
  FakeStream stream;
  const auto call = Make(stream);
  call->Start(*pending.Admit(0));
  call->EndIfSilent(kAtOnce);
  ASSERT_TRUE(stream.finished());
  EXPECT_EQ(pending.usage().in_flight, 0);
}

// Returns a request with a small key and a small value. Its query has four
// times the bytes that a client has to send within each timeout.
v1::AttentionRequest LargeQuery() {
  v1::AttentionRequest request;
  *request.mutable_query() = DataTensor({1024, 64}, 1);
  *request.mutable_key() = DataTensor({2, 64}, 2);
  *request.mutable_value() = DataTensor({2, 64}, 3);
  return request;
}

// Sends the messages one by one, and calls `pause` before each of them, until
// the call is over. Returns how many messages were sent.
size_t SendSlowly(StreamCall& call, FakeStream& stream,
                  const std::vector<Request>& messages,
                  const std::function<void()>& pause) {
  call.Start();
  for (size_t i = 0; i < messages.size(); ++i) {
    pause();
    call.EndIfSilent(seconds(10));
    if (stream.finished()) return i;
    EXPECT_TRUE(stream.TakeRead());
    call.OnMessage(InSlices(messages[i].SerializeAsString(), 5000, 1));
    if (stream.IsWriting() && stream.TakeWrite()) call.OnWritten(true);
  }
  return messages.size();
}

TEST_F(StreamCallTest, AClientThatMovesEnoughIsNotSilent) {
  // The client sends a header and three tensors. Each message completes a
  // tensor or at least 64 KiB within a timeout. The last two tensors have one
  // chunk each.
  for (const auto& [chunk_bytes, pace] :
       {std::pair(size_t{65536}, seconds(9)), {size_t{16384}, seconds(2)}}) {
    SCOPED_TRACE(chunk_bytes);
    FakeStream stream;
    const auto call = Make(stream);
    const std::vector<Request> messages = Chunked(LargeQuery(), chunk_bytes);
    EXPECT_EQ(SendSlowly(*call, stream, messages, [&] { Pass(pace); }),
              messages.size());
    ASSERT_TRUE(stream.TakeRead());
    call->OnEnd();
    EXPECT_TRUE(ReadAll(*call, stream).ok());
  }
}

TEST_F(StreamCallTest, AClientOfAByteNowAndThenIsSilent) {
  FakeStream stream;
  const auto call = Make(stream);
  // The header counts as progress, but the ten chunks after it are too little.
  EXPECT_EQ(SendSlowly(*call, stream, Chunked(LargeQuery(), 1000),
                       [] { Pass(seconds(1)); }),
            10);
  ASSERT_TRUE(stream.finished());
  const Refusal refusal = RefusalOf(*stream.finished());
  EXPECT_EQ(refusal.reason, "STREAM_IDLE");
  EXPECT_THAT(refusal.message, ::testing::HasSubstr("65536 bytes"));
}

// Time in which the server does not wait for the client does not count.
TEST_F(StreamCallTest, ABusyServerIsNoSilentClient) {
  FakeStream stream;
  const auto call = Make(stream);
  Send(*call, stream, Chunked(GoodAttention(), 1 << 20));
  ASSERT_TRUE(stream.TakeRead());
  call->OnEnd();
  while (!stream.IsWriting()) std::this_thread::yield();
  ASSERT_TRUE(stream.TakeWrite());
  Pass(seconds(100));
  call->OnWritten(true);
  call->EndIfSilent(seconds(10));
  EXPECT_FALSE(stream.IsBroken());
  EXPECT_TRUE(ReadAll(*call, stream).ok());
}

TEST_F(StreamCallTest, AClientThatWaitsForItsAnswerIsNotSilent) {
  FakeStream stream;
  const auto call = Make(stream);
  Send(*call, stream, Chunked(GoodAttention(), 100));
  ASSERT_TRUE(stream.TakeRead());
  Pass(seconds(10));
  call->OnEnd();
  call->EndIfSilent(seconds(10));
  EXPECT_TRUE(ReadAll(*call, stream).ok());
}

TEST_F(StreamCallTest, AClientThatDoesNotReadIsEndedAndGivesBackWhatItHeld) {
  // The client does not read the header, a chunk, or the last message of the
  // answer. In the last case, everything else has succeeded.
  for (const int read : {0, 1, 2}) {
    SCOPED_TRACE(read);
    FakeStream stream;
    auto call = Make(stream);
    const std::vector<Request> messages = Chunked(GoodAttention(), 1 << 20);
    if (read == 0) {
      call->Start();
      ASSERT_TRUE(stream.TakeRead());
      call->OnMessage(InSlices(messages[0].SerializeAsString(), 5000, 1));
    } else {
      Send(*call, stream, messages);
      ASSERT_TRUE(stream.TakeRead());
      call->OnEnd();
      for (int i = 1; i < read; ++i) {
        ASSERT_TRUE(stream.TakeWrite());
        call->OnWritten(true);
      }
      while (!stream.IsWriting()) std::this_thread::yield();
      EXPECT_EQ(admission_.usage().in_flight, 0) << "no slot for a write";
    }
    Pass(seconds(9));
    call->EndIfSilent(seconds(10));
    EXPECT_FALSE(stream.IsBroken());
    Pass(seconds(1));
    call->EndIfSilent(seconds(10));
    ASSERT_TRUE(stream.IsBroken());
    EXPECT_FALSE(stream.finished());  // the write is still outstanding

    ASSERT_TRUE(stream.TakeWrite());
    call->OnWritten(false);
    ASSERT_TRUE(stream.finished());
    EXPECT_EQ(RefusalOf(*stream.finished()).reason, "STREAM_IDLE");
    EXPECT_EQ(admission_.usage().in_flight, 0);
    if (stream.TakeRead()) call->OnEnd();
    call.reset();
    EXPECT_EQ(admission_.usage().bytes, 0);
  }
}

TEST_F(StreamCallTest, AClientThatReadsEnoughOfAChunkIsNotEnded) {
  FakeStream stream;
  const auto call = Make(stream);
  v1::AttentionRequest request;
  *request.mutable_query() = DataTensor({9000, 100}, 1);
  *request.mutable_key() = DataTensor({1, 100}, 2);
  *request.mutable_value() = DataTensor({1, 100}, 3);
  Send(*call, stream, Chunked(request, 1 << 20));
  ASSERT_TRUE(stream.TakeRead());
  call->OnEnd();
  while (!stream.IsWriting()) std::this_thread::yield();
  for (int64_t sent = 0; sent < 1 << 20; sent += 65536) {
    stream.SetSentBytes(sent);
    call->EndIfSilent(seconds(10));
    ASSERT_FALSE(stream.IsBroken()) << sent;
    Pass(seconds(9));
  }
  stream.SetSentBytes((1 << 20) - 1);
  call->EndIfSilent(seconds(10));
  Pass(seconds(1));
  call->EndIfSilent(seconds(10));
  EXPECT_TRUE(stream.IsBroken());
  ASSERT_TRUE(stream.TakeWrite());
  call->OnWritten(false);
}

// A header with tensors is held and counted in the same way as the message of a
// unary call.
TEST_F(StreamCallTest, AHeaderWithTensorsIsKeptUntilWorkersHaveCopiedThem) {
  v1::AttentionRequest request;
  *request.mutable_query() = DataTensor({1000, 64}, 1);
  *request.mutable_key() = DataTensor({1000, 64}, 2);
  *request.mutable_value() = DataTensor({1000, 64}, 3);
  const v1::AttentionResponse expected = Unary(request);
  std::string bytes = HeaderOf(request).SerializeAsString();
  FakeStream stream;
  const auto call = Make(stream);
  call->Start();
  ASSERT_TRUE(stream.TakeRead());
  auto gone = std::make_shared<std::atomic<bool>>(false);
  call->OnMessage(ReceivedMessage(
      {{bytes}}, {bytes.data(), [gone](const void*) { *gone = true; }}));
  EXPECT_FALSE(*gone);
  const int64_t tensors_bytes = 4 * 1000 * 64 * 4;
  EXPECT_GT(admission_.usage().bytes,
            static_cast<int64_t>(bytes.size()) + tensors_bytes);
  if (stream.IsWriting() && stream.TakeWrite()) call->OnWritten(true);
  ASSERT_TRUE(stream.TakeRead());
  call->OnEnd();
  EXPECT_TRUE(ReadAll(*call, stream).ok());
  EXPECT_TRUE(*gone);
  EXPECT_EQ(Joined(stream.responses).output().data(), expected.output().data());
}

TEST_F(StreamCallTest, LargeAnswersGoInChunks) {
  v1::AttentionRequest request;
  *request.mutable_query() = DataTensor({9000, 100}, 1);
  *request.mutable_key() = DataTensor({10, 100}, 2);
  *request.mutable_value() = DataTensor({10, 100}, 3);
  request.mutable_options()->set_return_lse(true);
  const Outcome outcome = Run(Chunked(request, 1 << 20));
  ASSERT_TRUE(outcome.status.ok()) << outcome.status;
  const v1::AttentionResponse answer = Joined(outcome.responses);
  EXPECT_EQ(answer.output().data().size(), 9000U * 100 * 4);
  EXPECT_EQ(answer.lse().data().size(), 9000U * 4);
  // These are a header, four pieces of the output, one piece of lse, and the
  // statistics.
  EXPECT_EQ(outcome.responses.size(), 7U);
}

TEST_F(StreamCallTest, EmptyTensorsNeedNoChunks) {
  v1::AttentionRequest request;
  *request.mutable_query() = DataTensor({0, 4}, 1);
  *request.mutable_key() = DataTensor({3, 4}, 1);
  *request.mutable_value() = DataTensor({3, 5}, 1);
  const Outcome outcome = Run(Chunked(request, 1000));
  ASSERT_TRUE(outcome.status.ok()) << outcome.status;
  ASSERT_EQ(outcome.responses.size(), 2U);
  EXPECT_EQ(outcome.responses[0].header().output().shape(1), 5);
  EXPECT_TRUE(outcome.responses[1].has_stats());
}

// Before the server reads the first chunk, it must tell the client that the
// call is admitted, and it must have reserved all memory of the call.
TEST_F(StreamCallTest, TheHeaderReservesTheWholeCall) {
  const std::vector<Request> messages = Chunked(WithBiasAndMask(), 100);
  FakeStream stream;
  const auto call = Make(stream);
  Send(*call, stream, {messages.front()});
  ASSERT_EQ(stream.responses.size(), 1U);
  EXPECT_TRUE(stream.responses[0].has_header());
  const int64_t held_bytes = admission_.usage().bytes;
  // The tensors are small, and so are the buffers for their chunks.
  EXPECT_GT(held_bytes, kMaxChunkBytes);
  EXPECT_LT(held_bytes, 2 * kMaxChunkBytes);
  for (size_t i = 1; i < messages.size(); ++i) {
    ASSERT_TRUE(stream.TakeRead());
    call->OnMessage(InSlices(messages[i].SerializeAsString(), 50, 1));
    EXPECT_EQ(admission_.usage().bytes, held_bytes);
  }
  ASSERT_TRUE(stream.TakeRead());
  call->OnEnd();
  EXPECT_TRUE(ReadAll(*call, stream).ok());
}

// The memory that gRPC may use for messages grows by what the calls have
// reserved for messages, and never by more than they have reserved.
TEST_F(StreamCallTest, ASmallStreamLetsMessagesTakeLittleMore) {
  std::vector<int64_t> told_bytes;
  const auto quota = std::make_shared<MessageQuota>(
      MessageQuota::Limits{.arriving_bytes = int64_t{1} << 30},
      [&](int64_t bytes) { told_bytes.push_back(bytes); });
  Admission admission(int64_t{1} << 30, 8, nullptr, quota);
  FakeStream stream;
  const auto call = Make(admission, stream);
  Send(*call, stream, {Chunked(GoodAttention(), 100).front()});
  ASSERT_EQ(stream.responses.size(), 1U);
  // The quota tells gRPC only about changes of several MiB.
  EXPECT_EQ(told_bytes, std::vector<int64_t>{int64_t{1} << 30});
  call->Cancel();
  if (stream.TakeRead()) call->OnEnd();
}

TEST_F(StreamCallTest, ThePeakThatIsEstimatedIsEnough) {
  v1::AttentionRequest request;
  *request.mutable_query() = DataTensor({1, 1, 1000, 64}, 1);
  *request.mutable_key() = DataTensor({1, 1, 1000, 64}, 2);
  *request.mutable_value() = DataTensor({1, 1, 1000, 64}, 3);
  for (const bool mask : {false, true}) {
    v1::MemoryEstimateRequest question;
    question.set_seq_len(1000);
    question.set_dimensions(64);
    question.set_transport(v1::TRANSPORT_STREAM);
    if (mask) {
      *request.mutable_options()->mutable_mask() = MaskTensor({1000, 1000}, 4);
      *question.mutable_options() = request.options();
      question.mutable_options()->mutable_mask()->clear_payload();
    }
    FakeStream ignored;
    Make(ignored);
    const auto estimate =
        EstimateMemory(question, context_->engine, context_->limits());
    ASSERT_TRUE(estimate.ok()) << estimate.status();
    Admission exact(estimate->peak_per_request_bytes(), 1);
    EXPECT_TRUE(Run(exact, Chunked(request, 1 << 20)).status.ok());
    Admission tight(estimate->flash_bytes(), 1);
    EXPECT_EQ(RefusalOf(Run(tight, Chunked(request, 1 << 20)).status).reason,
              "MEMORY_BUDGET");
  }
}

TEST_F(StreamCallTest, MistakesAreNamed) {
  const std::vector<Request> good = Chunked(WithBiasAndMask(), 100);
  const auto query = good[1].chunk();  // the first chunk of the query
  const auto replaced = [&](size_t index, const Request& message) {
    std::vector<Request> messages = good;
    messages[index] = message;
    return messages;
  };
  const auto added = [&](const Request& message) {
    std::vector<Request> messages = good;
    messages.push_back(message);
    return messages;
  };
  const auto header = [&](const std::function<void(v1::AttentionRequest&)>& f) {
    v1::AttentionRequest request = good[0].header();
    f(request);
    return replaced(0, HeaderOf(request));
  };
  struct Mistake {
    const char* field;
    std::vector<Request> messages;
  };
  const Mistake mistakes[] = {
      {"header", {}},
      {"header", {Request()}},
      {"header", {good[1]}},
      {"header", replaced(2, good[0])},
      {"chunk", replaced(2, Request())},
      {"chunk.role", replaced(1, ChunkOf(v1::TENSOR_ROLE_UNSPECIFIED, 0, "x"))},
      {"chunk.role", replaced(1, ChunkOf(v1::TENSOR_ROLE_OUTPUT, 0, "x"))},
      {"chunk.role", replaced(1, ChunkOf(v1::TensorRole(77), 0, "x"))},
      // The first header has no bias, and the second one already contains the
      // key.
      {"chunk.role", header([](auto& r) { r.mutable_options()->Clear(); })},
      {"chunk.role", header([](auto& r) {
         *r.mutable_key() = DataTensor({2, 2, 7, 8}, 1);
       })},
      {"chunk.data", replaced(1, ChunkOf(query.role(), 0, ""))},
      {"chunk.data",
       replaced(1, ChunkOf(query.role(), 0, std::string((1 << 20) + 1, 'x')))},
      // These chunks leave a gap, overlap, have a negative offset, go beyond
      // the end, and come twice.
      {"chunk.offset_bytes", replaced(2, ChunkOf(query.role(), 101, "x"))},
      {"chunk.offset_bytes", replaced(2, ChunkOf(query.role(), 99, "x"))},
      {"chunk.offset_bytes", replaced(2, ChunkOf(query.role(), -1, "x"))},
      {"chunk.data",
       replaced(2, ChunkOf(query.role(), 100, std::string(9999, 'x')))},
      {"chunk.offset_bytes", added(good[1])},
      // Here, some bytes are missing.
      {"header.query", {good[0]}},
      {"header.options.mask", {good.begin(), good.end() - 1}},
      // These headers are invalid.
      {"header.key.shape[3]",
       header([](auto& r) { r.mutable_query()->set_shape(3, 9); })},
      {"header.key", header([](auto& r) { r.clear_key(); })},
      {"header.key.data",
       header([](auto& r) { r.mutable_key()->set_data("x"); })},
      {"header.query.values", header([](auto& r) {
         r.mutable_query()->mutable_values()->add_values(1);
       })},
      {"header.value.shared_memory",
       header([](auto& r) { r.mutable_value()->mutable_shared_memory(); })},
      {"header.options.output_region",
       header([](auto& r) { r.mutable_options()->mutable_output_region(); })},
      {"header.options.scale",
       header([](auto& r) { r.mutable_options()->set_scale(1.F / 0.F); })},
  };
  for (const Mistake& mistake : mistakes) {
    const Refusal refusal = Refused(mistake.messages);
    EXPECT_EQ(refusal.field, mistake.field) << refusal.message;
    EXPECT_EQ(refusal.code,
              static_cast<int>(absl::StatusCode::kInvalidArgument));
    EXPECT_EQ(refusal.message.rfind(mistake.field, 0), 0U) << refusal.message;
  }
  EXPECT_EQ(admission_.usage().bytes, 0);
  EXPECT_EQ(admission_.usage().in_flight, 0);
}

TEST_F(StreamCallTest, MessagesSayWhatWasExpected) {
  const std::vector<Request> good = Chunked(GoodAttention(), 100);
  EXPECT_EQ(Refused({good[0], good[1], ChunkOf(v1::TENSOR_ROLE_QUERY, 70, "x")})
                .message,
            "chunk.offset_bytes: expected 100, because the earlier chunks of "
            "TENSOR_ROLE_QUERY end there, got 70");
  EXPECT_EQ(Refused({good[0], good[1]}).message,
            "header.query: expected 1280 bytes in chunks, got the end of the "
            "stream after 100");
}

// A message that is far larger than a chunk must fit into the budget until the
// server refuses it.
TEST_F(StreamCallTest, MessagesThatTakeMoreThanChunksMustFitToo) {
  const std::vector<Request> good = Chunked(GoodAttention(), 100);
  const Request large =
      ChunkOf(v1::TENSOR_ROLE_QUERY, 0, std::string(24 << 20, 'x'));
  Admission tight(24 << 20, 1);
  EXPECT_EQ(RefusalOf(Run(tight, {good[0], large}).status).reason,
            "MEMORY_BUDGET");
  EXPECT_EQ(Refused({good[0], large}).field, "chunk.data");
}

TEST_F(StreamCallTest, RandomBytesAreRefused) {
  std::mt19937_64 rng(1);
  const std::vector<Request> good = Chunked(GoodAttention(), 100);
  for (int i = 0; i < 300; ++i) {
    FakeStream stream;
    const auto call = Make(stream);
    call->Start();
    const size_t spoiled = rng() % good.size();
    for (size_t m = 0; m < good.size() && stream.TakeRead(); ++m) {
      std::string bytes = good[m].SerializeAsString();
      if (m == spoiled) bytes = Mutate(bytes, rng);
      call->OnMessage(InSlices(bytes, 5000, 1));
      if (stream.IsWriting() && stream.TakeWrite()) call->OnWritten(true);
    }
    if (stream.TakeRead()) call->OnEnd();
    const absl::Status status = ReadAll(*call, stream);
    EXPECT_TRUE(status.ok() || absl::IsInvalidArgument(status) ||
                absl::IsUnimplemented(status) ||
                absl::IsResourceExhausted(status))
        << status;
  }
}

TEST_F(StreamCallTest, ADrainingServerLetsInNoMore) {
  admission_.Close();
  EXPECT_EQ(Refused(Chunked(GoodAttention(), 100)).reason, "DRAINING");
}

// The client goes away, or the deadline passes, while the client uploads.
TEST_F(StreamCallTest, AnEndOfTheCallWhileUploadingGivesBackEverything) {
  const std::vector<Request> good = Chunked(GoodAttention(), 100);
  {
    FakeStream stream;
    auto call = Make(stream);
    Send(*call, stream, {good[0], good[1]});
    EXPECT_GT(admission_.usage().bytes, 0);
    call->Cancel();
    ASSERT_TRUE(stream.TakeRead());
    call->OnEnd();
    EXPECT_EQ(RefusalOf(ReadAll(*call, stream)).reason, "CANCELLED");
    call.reset();
    EXPECT_EQ(admission_.usage().bytes, 0);
  }
  // At the deadline, gRPC ends the stream.
  FakeStream stream;
  const auto now = std::chrono::steady_clock::now();
  const auto late = now + std::chrono::milliseconds(200);
  const auto call = Make(stream, late);
  Send(*call, stream, good);
  ASSERT_TRUE(stream.TakeRead());
  std::this_thread::sleep_until(late);
  call->OnEnd();
  EXPECT_EQ(RefusalOf(ReadAll(*call, stream)).reason, "DEADLINE_EXCEEDED");
}

TEST_F(StreamCallTest, CancelStopsWhatRuns) {
  v1::AttentionRequest request;
  for (auto* tensor : {request.mutable_query(), request.mutable_key(),
                       request.mutable_value()}) {
    *tensor = DataTensor({1 << 20, 1}, 1);
  }
  FakeStream stream;
  const auto call = Make(stream);
  Send(*call, stream, Chunked(request, 1 << 20));
  ASSERT_TRUE(stream.TakeRead());
  call->OnEnd();
  call->Cancel();
  EXPECT_EQ(RefusalOf(ReadAll(*call, stream)).reason, "CANCELLED");
}

TEST_F(StreamCallTest, ABrokenStreamEndsTheAnswer) {
  FakeStream stream;
  const auto call = Make(stream);
  Send(*call, stream, Chunked(GoodAttention(), 100));
  ASSERT_TRUE(stream.TakeRead());
  call->OnEnd();
  ASSERT_TRUE(stream.TakeWrite());
  call->OnWritten(false);
  EXPECT_FALSE(stream.TakeWrite());
  EXPECT_EQ(RefusalOf(*stream.finished()).reason, "CANCELLED");
}

// Returns a header that is so long that the decode thread decodes it.
Request LongHeader() {
  Request message;
  v1::AttentionRequest& header = *message.mutable_header();
  const int64_t batch = kMaxLightNumbers + 1;
  *header.mutable_query() = DataTensor({batch, 1, 1, 1}, 1);
  *header.mutable_key() = DataTensor({batch, 1, 1, 1}, 2);
  *header.mutable_value() = DataTensor({batch, 1, 1, 1}, 3);
  header.mutable_options()->mutable_key_lengths()->Resize(
      static_cast<int>(batch), 1);
  return message;
}

TEST_F(StreamCallTest, LongHeadersAreDecodedElsewhere) {
  std::optional<DecodeThread> decoder(std::in_place);
  std::promise<void> released;
  decoder->Run(0, [&] { released.get_future().wait(); });
  FakeStream stream;
  const auto call = Make(stream);
  context_->decoder = &*decoder;
  Send(*call, stream, {LongHeader()});
  // The server waits for the decode thread and not for the client, so the
  // client is not silent.
  EXPECT_EQ(admission_.usage().in_flight, 1);
  Pass(seconds(100));
  call->EndIfSilent(seconds(60));
  EXPECT_FALSE(stream.finished());
  EXPECT_FALSE(stream.TakeRead());
  released.set_value();
  decoder.reset();
  EXPECT_TRUE(stream.TakeRead());
  call->OnEnd();
  EXPECT_TRUE(ReadAll(*call, stream).ok());
  EXPECT_EQ(Joined(stream.responses).output().data().size(),
            size_t{4} * (kMaxLightNumbers + 1));
}

TEST_F(StreamCallTest, LongHeadersCanBeCancelledWhileTheyWait) {
  std::optional<DecodeThread> decoder(std::in_place);
  std::promise<void> released;
  decoder->Run(0, [&] { released.get_future().wait(); });
  FakeStream stream;
  const auto call = Make(stream);
  context_->decoder = &*decoder;
  Send(*call, stream, {LongHeader()});
  call->Cancel();
  released.set_value();
  decoder.reset();
  ASSERT_TRUE(stream.finished());
  EXPECT_EQ(RefusalOf(*stream.finished()).reason, "CANCELLED");
  EXPECT_EQ(admission_.usage().in_flight, 0);
}

// Such a message is not even parsed, because no chunk is long.
TEST_F(StreamCallTest, ASecondLongHeaderIsRefusedAtOnce) {
  const Refusal refusal = Refused({LongHeader(), LongHeader()});
  EXPECT_EQ(refusal.field, "header");
}

}  // namespace
}  // namespace attnd::server

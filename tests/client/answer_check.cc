#include "tests/client/answer_check.h"

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "attnd/v1/attention.pb.h"
#include "client/answer_reader.h"
#include "client/attention_exchange.h"
#include "tests/support/in_blocks.h"

namespace attnd::client {
namespace {

constexpr size_t kRows = 2;
constexpr size_t kColumns = 3;
constexpr size_t kOutputs = kRows * kColumns;

std::vector<int64_t> ShapeOfOutput() { return {kRows, kColumns}; }
std::vector<int64_t> ShapeOfLse() { return {kRows}; }

// The memory to which the client writes the two tensors of an answer.
struct Room {
  std::vector<float> output = std::vector<float>(kOutputs, -1);
  std::vector<float> lse = std::vector<float>(kRows, -1);

  AttentionOutputs outputs() { return {.output = output, .lse = lse}; }
};

v1::AttentionResponse GoodResponse() {
  v1::AttentionResponse response;
  v1::Tensor* const output = response.mutable_output();
  output->set_dtype(v1::DATA_TYPE_F32);
  output->add_shape(kRows);
  output->add_shape(kColumns);
  output->set_data(Bytes({0, 1, 2, 3, 4, 5}));
  v1::Tensor* const lse = response.mutable_lse();
  lse->set_dtype(v1::DATA_TYPE_F32);
  lse->add_shape(kRows);
  lse->set_data(Bytes({3, 4}));
  response.mutable_stats()->set_isa("avx2");
  response.mutable_stats()->set_flops(5);
  return response;
}

bool Describes(const v1::Tensor& header, const std::vector<int64_t>& shape) {
  return header.dtype() == v1::DATA_TYPE_F32 &&
         std::vector<int64_t>(header.shape().begin(), header.shape().end()) ==
             shape;
}

bool Holds(const v1::Tensor& tensor, const std::vector<int64_t>& shape) {
  return Describes(tensor, shape) && tensor.has_data() &&
         tensor.data().size() ==
             static_cast<size_t>(*ElementCount(shape)) * sizeof(float);
}

// Joins the messages of a stream, as protobuf parses them.
class Gathered {
 public:
  bool Take(const std::string& text) {
    v1::AttentionStreamResponse message;
    if (!message.ParseFromString(text)) return false;
    if (message.has_header()) {
      has_header_ = Describes(message.header().output(), ShapeOfOutput()) &&
                    Describes(message.header().lse(), ShapeOfLse());
      return has_header_;
    }
    has_stats_ |= message.has_stats();
    if (!message.has_chunk()) return true;
    const v1::TensorChunk& chunk = message.chunk();
    if (!has_header_ || (chunk.role() != v1::TENSOR_ROLE_OUTPUT &&
                         chunk.role() != v1::TENSOR_ROLE_LSE)) {
      return false;
    }
    std::string& to = chunk.role() == v1::TENSOR_ROLE_LSE ? lse_ : output_;
    if (chunk.offset_bytes() != static_cast<int64_t>(to.size())) return false;
    to += chunk.data();
    return true;
  }
  bool whole() const {
    return has_header_ && has_stats_ &&
           output_.size() == kOutputs * sizeof(float) &&
           lse_.size() == kRows * sizeof(float);
  }
  bool operator==(const Room& room) const {
    return output_ == Bytes(room.output) && lse_ == Bytes(room.lse);
  }

 private:
  bool has_header_ = false;
  bool has_stats_ = false;
  std::string output_;
  std::string lse_;
};

}  // namespace

std::string Bytes(const std::vector<float>& floats) {
  return {reinterpret_cast<const char*>(floats.data()),
          floats.size() * sizeof(float)};
}

AnswerCheck CheckReply(const std::string& text, size_t block_bytes) {
  Room room;
  AnswerCheck check;
  check.accepted = ReadReply(InBlocks(text, block_bytes),
                             {room.outputs(), ShapeOfOutput(), ShapeOfLse()})
                       .ok();
  v1::AttentionResponse parsed;
  check.good = parsed.ParseFromString(text) &&
               Holds(parsed.output(), ShapeOfOutput()) &&
               Holds(parsed.lse(), ShapeOfLse());
  check.equal = parsed.output().data() == Bytes(room.output) &&
                parsed.lse().data() == Bytes(room.lse);
  return check;
}

AnswerCheck CheckStream(const std::vector<std::string>& messages,
                        size_t block_bytes) {
  Room room;
  const AttentionInputs inputs{.query = {{}, {kRows, 4}},
                               .key = {{}, {7, 4}},
                               .value = {{}, {7, kColumns}}};
  AttentionExchange exchange(inputs, {}, {}, room.outputs(), 1 << 20);
  Gathered gathered;
  AnswerCheck check{.accepted = true, .good = true};
  for (const std::string& text : messages) {
    check.accepted =
        check.accepted && exchange.OnResponse(InBlocks(text, block_bytes));
    check.good = check.good && gathered.Take(text);
  }
  check.accepted = check.accepted && exchange.Reply(absl::OkStatus()).ok();
  check.good = check.good && gathered.whole();
  check.equal = gathered == room;
  return check;
}

std::string GoodReply() { return GoodResponse().SerializeAsString(); }

std::vector<std::string> GoodStream() {
  const v1::AttentionResponse good = GoodResponse();
  v1::AttentionStreamResponse header;
  v1::AttentionStreamResponse stats;
  *header.mutable_header() = good;
  *stats.mutable_stats() = header.header().stats();
  header.mutable_header()->clear_stats();
  header.mutable_header()->mutable_output()->clear_payload();
  header.mutable_header()->mutable_lse()->clear_payload();
  std::vector<std::string> messages = {header.SerializeAsString()};
  const auto add_chunk = [&](v1::TensorRole role, const std::string& data,
                             size_t offset, size_t size) {
    v1::AttentionStreamResponse message;
    message.mutable_chunk()->set_role(role);
    message.mutable_chunk()->set_offset_bytes(static_cast<int64_t>(offset));
    message.mutable_chunk()->set_data(data.substr(offset, size));
    messages.push_back(message.SerializeAsString());
  };
  add_chunk(v1::TENSOR_ROLE_OUTPUT, good.output().data(), 0, 12);
  add_chunk(v1::TENSOR_ROLE_OUTPUT, good.output().data(), 12, 12);
  add_chunk(v1::TENSOR_ROLE_LSE, good.lse().data(), 0, 8);
  messages.push_back(stats.SerializeAsString());
  return messages;
}

}  // namespace attnd::client

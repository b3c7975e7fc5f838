#include "tests/server/message_tools.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "base/half_float.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/status/status_convert.h"

namespace attnd::server {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

std::vector<float> RandomElements(const std::vector<int64_t>& shape,
                                  uint64_t seed) {
  size_t count = 1;
  for (const int64_t extent : shape) count *= static_cast<size_t>(extent);
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> elements(count);
  for (float& element : elements) element = normal(rng);
  return elements;
}

// Returns small numbers, negative numbers and numbers up to the largest.
int64_t RandomNumber(std::mt19937_64& rng) {
  return static_cast<int64_t>(rng() >> (rng() % 64)) * (rng() % 4 ? 1 : -1);
}

void FillField(Message& message, const FieldDescriptor& field,
               std::mt19937_64& rng) {
  const auto& reflection = *message.GetReflection();
  const auto number = RandomNumber(rng);
  const bool many = field.is_repeated();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT64:
      many ? reflection.AddInt64(&message, &field, number)
           : reflection.SetInt64(&message, &field, number);
      break;
    case FieldDescriptor::CPPTYPE_FLOAT: {
      const auto real = static_cast<float>(number) / 16;
      many ? reflection.AddFloat(&message, &field, real)
           : reflection.SetFloat(&message, &field, real);
      break;
    }
    case FieldDescriptor::CPPTYPE_BOOL:
      reflection.SetBool(&message, &field, number % 2 != 0);
      break;
    case FieldDescriptor::CPPTYPE_ENUM:
      reflection.SetEnumValue(&message, &field,
                              static_cast<int>(number % 1000));
      break;
    case FieldDescriptor::CPPTYPE_STRING:
      reflection.SetString(&message, &field, RandomBytes(rng() % 40, rng));
      break;
    case FieldDescriptor::CPPTYPE_MESSAGE:
      FillAtRandom(*reflection.MutableMessage(&message, &field), rng);
      break;
    default:
      break;
  }
}

}  // namespace

v1::Tensor DataTensor(const std::vector<int64_t>& shape, uint64_t seed) {
  const std::vector<float> elements = RandomElements(shape, seed);
  v1::Tensor tensor;
  tensor.set_dtype(v1::DATA_TYPE_F32);
  tensor.mutable_shape()->Add(shape.begin(), shape.end());
  tensor.set_data(std::string(reinterpret_cast<const char*>(elements.data()),
                              elements.size() * sizeof(float)));
  return tensor;
}

v1::Tensor ValuesTensor(const std::vector<int64_t>& shape, uint64_t seed) {
  const std::vector<float> elements = RandomElements(shape, seed);
  v1::Tensor tensor;
  tensor.mutable_shape()->Add(shape.begin(), shape.end());
  tensor.mutable_values()->mutable_values()->Add(elements.begin(),
                                                 elements.end());
  return tensor;
}

v1::Tensor HalfTensor(v1::DataType type, const std::vector<int64_t>& shape,
                      uint64_t seed) {
  std::string data;
  for (const float element : RandomElements(shape, seed)) {
    const uint16_t bits = type == v1::DATA_TYPE_F16 ? F16FromFloat(element)
                                                    : BF16FromFloat(element);
    data.append(reinterpret_cast<const char*>(&bits), sizeof(bits));
  }
  v1::Tensor tensor;
  tensor.set_dtype(type);
  tensor.mutable_shape()->Add(shape.begin(), shape.end());
  tensor.set_data(std::move(data));
  return tensor;
}

v1::Tensor MaskTensor(const std::vector<int64_t>& shape, uint64_t seed) {
  size_t count = 1;
  for (const int64_t extent : shape) count *= static_cast<size_t>(extent);
  std::mt19937_64 rng(seed);
  std::string data(count, '\0');
  for (char& visible : data) {
    // In a mask, every byte except 0 means true.
    visible = static_cast<char>(rng() % 4);
  }
  v1::Tensor tensor;
  tensor.set_dtype(v1::DATA_TYPE_BOOL);
  tensor.mutable_shape()->Add(shape.begin(), shape.end());
  tensor.set_data(std::move(data));
  return tensor;
}

v1::AttentionBackwardRequest GoodBackward() {
  const v1::AttentionRequest forward = GoodAttention();
  v1::AttentionBackwardRequest request;
  *request.mutable_query() = forward.query();
  *request.mutable_key() = forward.key();
  *request.mutable_value() = forward.value();
  *request.mutable_output() = DataTensor({2, 4, 5, 3}, 4);
  *request.mutable_lse() = DataTensor({2, 4, 5}, 5);
  *request.mutable_grad_output() = DataTensor({2, 4, 5, 3}, 6);
  return request;
}

v1::AttentionRequest GoodAttention() {
  v1::AttentionRequest request;
  *request.mutable_query() = DataTensor({2, 4, 5, 8}, 1);
  *request.mutable_key() = DataTensor({2, 2, 7, 8}, 2);
  *request.mutable_value() = DataTensor({2, 2, 7, 3}, 3);
  return request;
}

ReceivedMessage InSlices(const std::string& bytes, size_t max_slice,
                         uint64_t seed) {
  auto owner = std::make_shared<std::vector<std::unique_ptr<char[]>>>();
  std::minstd_rand rng(static_cast<uint32_t>(seed));
  std::vector<ReceivedMessage::Slice> slices;
  absl::string_view rest = bytes;
  while (!rest.empty()) {
    const absl::string_view slice = rest.substr(0, 1 + rng() % max_slice);
    owner->push_back(std::make_unique_for_overwrite<char[]>(slice.size()));
    std::memcpy(owner->back().get(), slice.data(), slice.size());
    slices.push_back({{owner->back().get(), slice.size()}});
    rest.remove_prefix(slice.size());
  }
  return {std::move(slices), std::move(owner)};
}

void RestorePayloads(Message& message, const SplitMessage& split,
                     const ReceivedMessage& received) {
  const auto payload_of = [&](const std::string& token) {
    const PayloadRange range = PayloadOf(split, token);
    std::string data(static_cast<size_t>(range.size_bytes), '\0');
    received.CopyTo(range, reinterpret_cast<std::byte*>(data.data()));
    return data;
  };
  if (auto* tensor = dynamic_cast<v1::Tensor*>(&message)) {
    if (tensor->payload_case() == v1::Tensor::kData) {
      tensor->set_data(payload_of(tensor->data()));
    }
    return;
  }
  if (auto* chunk = dynamic_cast<v1::TensorChunk*>(&message)) {
    if (!chunk->data().empty()) chunk->set_data(payload_of(chunk->data()));
    return;
  }
  const auto& reflection = *message.GetReflection();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const auto* field = message.GetDescriptor()->field(i);
    if (field->cpp_type() == field->CPPTYPE_MESSAGE &&
        reflection.HasField(message, field)) {
      RestorePayloads(*reflection.MutableMessage(&message, field), split,
                      received);
    }
  }
}

std::string Join(const OutgoingMessage& message) {
  std::string text;
  for (const OutgoingMessage::Piece& piece : message.pieces()) {
    text.append(piece.bytes().data(), piece.bytes().size());
  }
  return text;
}

Refusal ParseRefusal(const std::string& details) {
  Refusal refusal{.code = 0,
                  .message = {},
                  .reason = {},
                  .field = "<none>",
                  .retry_ms = -1};
  google::rpc::Status status;
  if (!status.ParseFromString(details)) {
    refusal.message = "<details do not parse>";
    return refusal;
  }
  refusal.code = status.code();
  refusal.message = status.message();
  for (const auto& detail : status.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest bad;
    google::rpc::RetryInfo retry;
    if (detail.UnpackTo(&info) && info.domain() == "attnd") {
      refusal.reason = info.reason();
    } else if (detail.UnpackTo(&bad) && bad.field_violations_size() == 1) {
      refusal.field = bad.field_violations(0).field();
    } else if (detail.UnpackTo(&retry)) {
      refusal.retry_ms = retry.retry_delay().seconds() * 1000 +
                         retry.retry_delay().nanos() / 1'000'000;
    }
  }
  return refusal;
}

Refusal RefusalOf(const absl::Status& status) {
  return ParseRefusal(ToWireStatus(status).details);
}

void FillAtRandom(Message& message, std::mt19937_64& rng) {
  const auto* type = message.GetDescriptor();
  for (int i = 0; i < type->field_count(); ++i) {
    if (rng() % 3 == 0) continue;
    const FieldDescriptor& field = *type->field(i);
    const size_t times = field.is_repeated() ? rng() % 5 : 1;
    for (size_t n = 0; n < times; ++n) FillField(message, field, rng);
  }
}

std::string Mutate(std::string bytes, std::mt19937_64& rng) {
  const size_t edits = 1 + rng() % 3;
  for (size_t edit = 0; edit < edits; ++edit) {
    const size_t at = bytes.empty() ? 0 : rng() % bytes.size();
    switch (rng() % 5) {
      case 0:
        if (!bytes.empty()) bytes[at] = static_cast<char>(rng());
        break;
      case 1:
        if (!bytes.empty()) {
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << rng() % 8));
        }
        break;
      case 2:
        bytes.insert(at, RandomBytes(1 + rng() % 4, rng));
        break;
      case 3:
        bytes.erase(at, 1 + rng() % 4);
        break;
      default:
        bytes += bytes.substr(at);
    }
  }
  return bytes;
}

std::string RandomBytes(size_t count, std::mt19937_64& rng) {
  std::string bytes(count, '\0');
  std::generate(bytes.begin(), bytes.end(),
                [&] { return static_cast<char>(rng()); });
  return bytes;
}

}  // namespace attnd::server

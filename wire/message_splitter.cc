#include "wire/message_splitter.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attnd/v1/attention.pb.h"
#include "base/field_error.h"
#include "base/status_macros.h"
#include "google/protobuf/wire_format_lite.h"
#include "wire/reasons.h"

namespace attnd {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::ZeroCopyInputStream;

// These are the limits of protobuf's own parser, so that both refuse the same
// messages.
constexpr int kMaxDepth = 100;
constexpr int kMaxVarintBytes = 10;
constexpr int kMaxTagBytes = 5;
constexpr uint64_t kMaxLength = std::numeric_limits<int32_t>::max() - 16;

// The length of a nested message is written before it is known. It takes this
// many bytes: a varint that is padded, which every parser accepts.
constexpr int kPaddedLengthBytes = 5;

// No parsed message, such as Tensor or FloatValues, takes more than this in
// addition to its arrays.
constexpr int64_t kParsedMessageBytes = 512;
// While an array grows, the old array and one of twice its size exist.
constexpr int64_t kGrowthFactor = 3;
constexpr int64_t kParsedElementBytes = 8 * kGrowthFactor;

// Enough for the header of most requests.
constexpr int64_t kUsualHeaderBytes = 256;

absl::Status TooManyError(absl::string_view what, int64_t limit,
                          absl::string_view advice) {
  return WithReason(
      absl::InvalidArgumentError(
          absl::StrCat("the message has too many ", what, ": expected at most ",
                       limit, ", got more (the rest was not read); ", advice)),
      kTooManyFields);
}

int64_t VarintBytes(uint64_t value) {
  int64_t bytes = 1;
  for (; value >= 0x80; value >>= 7) ++bytes;
  return bytes;
}

// Reads bytes up to a limit. Its functions are inline because a small call
// spends a good part of its time here, and CodedInputStream would make a call
// for each byte.
class Reader {
 public:
  explicit Reader(ZeroCopyInputStream* input) : input_(input) {}
  ~Reader() {
    if (next_ != end_) input_->BackUp(static_cast<int>(end_ - next_));
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  int64_t position() const { return end_position_ - (end_ - next_); }
  // Returns how many bytes are left before the limit.
  int64_t left() const { return limit_ - position(); }

  // Sets the limit to the end of the next `bytes` bytes. Returns the previous
  // limit, which PopLimit restores.
  int64_t PushLimit(int64_t bytes) {
    return std::exchange(limit_, position() + bytes);
  }
  void PopLimit(int64_t limit) { limit_ = limit; }

  // These return false at the limit, or if the input ends before it.
  bool ReadByte(uint8_t* byte) {
    if (left() == 0 || (next_ == end_ && !Refill())) return false;
    *byte = *next_++;
    return true;
  }
  bool Read(int64_t bytes, char* to) {
    if (bytes > left()) return false;
    while (bytes > 0) {
      if (next_ == end_ && !Refill()) return false;
      const int64_t step = std::min<int64_t>(bytes, end_ - next_);
      std::memcpy(to, next_, static_cast<size_t>(step));
      next_ += step;
      to += step;
      bytes -= step;
    }
    return true;
  }
  bool Skip(int64_t bytes) {
    if (bytes > left()) return false;
    const int64_t step = std::min<int64_t>(bytes, end_ - next_);
    next_ += step;
    if (step == bytes) return true;
    end_position_ += bytes - step;
    return input_->Skip(static_cast<int>(bytes - step));
  }

 private:
  bool Refill() {
    const void* data = nullptr;
    int size = 0;
    while (size == 0) {
      if (!input_->Next(&data, &size)) return false;
    }
    next_ = static_cast<const uint8_t*>(data);
    end_ = next_ + size;
    end_position_ += size;
    return true;
  }

  ZeroCopyInputStream* const input_;
  const uint8_t* next_ = nullptr;  // the rest of a block of the input
  const uint8_t* end_ = nullptr;
  int64_t end_position_ = 0;  // of end_ in the message
  int64_t limit_ = 0;
};

// Walks through one message once. Counts what splitting it costs, and splits it
// if `out` is set.
class Walker {
 public:
  Walker(ZeroCopyInputStream* input, SplitMessage* out)
      : input_(input), out_(out) {}

  // How a walk ended.
  enum class End { kDone, kMalformed, kTooManyFields, kTooManyNumbers, kHeavy };

  // Walks through the message. If `only_light` is set, ends the walk as soon as
  // the message is no longer light.
  End Run(int64_t size_bytes, const Descriptor* type, bool only_light) {
    if (size_bytes > std::numeric_limits<int32_t>::max()) {
      return End::kMalformed;
    }
    only_light_ = only_light;
    input_.PushLimit(size_bytes);
    if (!Message(type, kMaxDepth)) return end_;
    cost_.bound_bytes += cost_.header_bytes;
    return input_.position() == size_bytes ? End::kDone : End::kMalformed;
  }

  const SplitCost& cost() const { return cost_; }

 private:
  bool AtEnd() const { return input_.left() == 0; }

  bool Stop(End end) {
    end_ = end;
    return false;
  }

  // Counts a field that is about to be read.
  bool CountField() {
    return ++fields_ <= kMaxFields || Stop(End::kTooManyFields);
  }

  // Counts `fewest` to `most` numbers that are about to be read.
  bool CountNumbers(int64_t fewest, int64_t most) {
    numbers_ += fewest;
    light_numbers_ += most;
    if (numbers_ > kMaxListedNumbers) return Stop(End::kTooManyNumbers);
    return !only_light_ || light_numbers_ <= kMaxLightNumbers ||
           Stop(End::kHeavy);
  }

  // Reads a varint of up to `max_bytes` bytes and drops bits beyond 64.
  bool Varint(int max_bytes, uint64_t* value) {
    *value = 0;
    for (int i = 0; i < max_bytes; ++i) {
      uint8_t byte = 0;
      if (!input_.ReadByte(&byte)) return false;
      *value |= static_cast<uint64_t>(byte & 0x7f) << (7 * i);
      if (byte < 0x80) return true;
    }
    return false;
  }

  bool Tag(uint32_t* tag) {
    uint64_t wide = 0;
    if (!Varint(kMaxTagBytes, &wide)) return false;
    *tag = static_cast<uint32_t>(wide);
    return WireFormatLite::GetTagFieldNumber(*tag) != 0;
  }

  // Reads the length of a field. Returns false if the field would exceed the
  // message around it.
  bool Length(int* length) {
    uint64_t wide = 0;
    if (!Varint(kMaxTagBytes, &wide) || wide > kMaxLength) return false;
    *length = static_cast<int>(wide);
    return *length <= input_.left();
  }

  bool Message(const Descriptor* type, int depth) {
    cost_.bound_bytes += kParsedMessageBytes;
    while (!AtEnd()) {
      uint32_t tag = 0;
      if (!Tag(&tag)) return false;
      const FieldDescriptor* field =
          type->FindFieldByNumber(WireFormatLite::GetTagFieldNumber(tag));
      const bool known = field != nullptr && Fits(*field, tag);
      const bool number = known && field->is_packable() &&
                          WireFormatLite::GetTagWireType(tag) !=
                              WireFormatLite::WIRETYPE_LENGTH_DELIMITED;
      if (!(number ? CountNumbers(1, 1) : CountField())) return false;
      if (!(known ? Known(*field, tag, depth) : Skip(tag, depth))) return false;
    }
    return true;
  }

  // Returns whether a field of this kind can have the wire type of `tag`. If it
  // cannot, protobuf treats the field as unknown.
  static bool Fits(const FieldDescriptor& field, uint32_t tag) {
    const auto wire_type = WireFormatLite::GetTagWireType(tag);
    return wire_type == WireType(field) ||
           (field.is_packable() &&
            wire_type == WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
  }

  static WireFormatLite::WireType WireType(const FieldDescriptor& field) {
    return WireFormatLite::WireTypeForFieldType(
        static_cast<WireFormatLite::FieldType>(field.type()));
  }

  bool Known(const FieldDescriptor& field, uint32_t tag, int depth) {
    if (WireFormatLite::GetTagWireType(tag) !=
        WireFormatLite::WIRETYPE_LENGTH_DELIMITED) {
      return Scalar(field, tag);
    }
    int length = 0;
    if (!Length(&length)) return false;
    if (field.type() == FieldDescriptor::TYPE_MESSAGE) {
      return Nested(*field.message_type(), tag, length, depth);
    }
    if (IsPayload(field)) return Payload(tag, length);
    if (!CountBytes(field, length)) return false;
    WriteVarint(tag);
    WriteVarint(static_cast<uint64_t>(length));
    const bool varints = WireType(field) == WireFormatLite::WIRETYPE_VARINT;
    cost_.bound_bytes += (varints ? kParsedElementBytes : kGrowthFactor) *
                         static_cast<int64_t>(length);
    return Copy(length);
  }

  // Counts the contents of a packed field or of a field of bytes.
  bool CountBytes(const FieldDescriptor& field, int length) {
    if (!field.is_packable()) return CountNumbers(0, length);
    if (WireType(field) == WireFormatLite::WIRETYPE_VARINT) {
      return CountNumbers(length / kMaxVarintBytes, length);
    }
    // All other lists are of floats.
    const int64_t numbers = length / static_cast<int64_t>(sizeof(float));
    return CountNumbers(IsElements(field) ? 0 : numbers, numbers);
  }

  bool Scalar(const FieldDescriptor& field, uint32_t tag) {
    cost_.bound_bytes += kParsedElementBytes;
    WriteVarint(tag);
    switch (WireType(field)) {
      case WireFormatLite::WIRETYPE_VARINT: {
        uint64_t value = 0;
        if (!Varint(kMaxVarintBytes, &value)) return false;
        WriteVarint(value);
        return true;
      }
      case WireFormatLite::WIRETYPE_FIXED64:
        return Copy(8);
      case WireFormatLite::WIRETYPE_FIXED32:
        return Copy(4);
      default:
        return false;
    }
  }

  bool Nested(const Descriptor& type, uint32_t tag, int length, int depth) {
    if (depth == 0) return false;
    WriteVarint(tag);
    cost_.header_bytes += kPaddedLengthBytes;
    size_t begin = 0;
    if (out_ != nullptr) {
      out_->header.append(kPaddedLengthBytes, '\0');
      begin = out_->header.size();
    }
    const int64_t limit = input_.PushLimit(length);
    if (!Message(&type, depth - 1)) return false;
    input_.PopLimit(limit);
    if (out_ != nullptr) PatchLength(begin);
    return true;
  }

  void PatchLength(size_t begin) {
    uint64_t length = out_->header.size() - begin;
    char* at = out_->header.data() + begin - kPaddedLengthBytes;
    for (int i = 0; i < kPaddedLengthBytes; ++i, length >>= 7) {
      const bool last = i + 1 == kPaddedLengthBytes;
      at[i] = static_cast<char>((length & 0x7f) | (last ? 0 : 0x80));
    }
  }

  static bool IsElements(const FieldDescriptor& field) {
    static const Descriptor* const kValues = v1::FloatValues::descriptor();
    return field.containing_type() == kValues;
  }

  static bool IsPayload(const FieldDescriptor& field) {
    static const Descriptor* const kTensor = v1::Tensor::descriptor();
    static const Descriptor* const kChunk = v1::TensorChunk::descriptor();
    const Descriptor* const type = field.containing_type();
    return (type == kTensor &&
            field.number() == v1::Tensor::kDataFieldNumber) ||
           (type == kChunk &&
            field.number() == v1::TensorChunk::kDataFieldNumber);
  }

  bool Payload(uint32_t tag, int length) {
    WriteVarint(tag);
    WriteVarint(kPayloadTokenBytes);
    const auto index = static_cast<uint64_t>(cost_.payload_count++);
    cost_.bound_bytes +=
        static_cast<int64_t>(sizeof(PayloadRange)) + kPayloadTokenBytes;
    std::array<char, kPayloadTokenBytes> token;
    std::memcpy(token.data(), &index, sizeof(index));
    Write({token.data(), token.size()});
    if (out_ != nullptr) {
      out_->payloads.push_back({input_.position(), length});
    }
    return input_.Skip(length);
  }

  // Passes over an unknown field. Uses a loop instead of recursion, so that a
  // message cannot exhaust the stack. Allows `depth` nested groups, as protobuf
  // does.
  bool Skip(uint32_t tag, int depth) {
    std::array<int, kMaxDepth> open_groups;
    size_t open = 0;
    do {
      switch (tag & 7) {
        case WireFormatLite::WIRETYPE_VARINT: {
          uint64_t ignored = 0;
          if (!Varint(kMaxVarintBytes, &ignored)) return false;
          break;
        }
        case WireFormatLite::WIRETYPE_FIXED64:
          if (!input_.Skip(8)) return false;
          break;
        case WireFormatLite::WIRETYPE_FIXED32:
          if (!input_.Skip(4)) return false;
          break;
        case WireFormatLite::WIRETYPE_LENGTH_DELIMITED: {
          int length = 0;
          if (!Length(&length) || !input_.Skip(length)) return false;
          break;
        }
        case WireFormatLite::WIRETYPE_START_GROUP:
          if (static_cast<int>(open) == depth) return false;
          open_groups[open++] = WireFormatLite::GetTagFieldNumber(tag);
          break;
        case WireFormatLite::WIRETYPE_END_GROUP:
          if (open == 0) return false;
          --open;
          if (open_groups[open] != WireFormatLite::GetTagFieldNumber(tag)) {
            return false;
          }
          break;
        default:
          return false;
      }
      if (open > 0 && !(Tag(&tag) && CountField())) return false;
    } while (open > 0);
    return true;
  }

  bool Copy(int bytes) {
    if (bytes > input_.left()) return false;
    cost_.header_bytes += bytes;
    if (out_ == nullptr) return input_.Skip(bytes);
    const size_t begin = out_->header.size();
    out_->header.resize(begin + static_cast<size_t>(bytes));
    return input_.Read(bytes, out_->header.data() + begin);
  }

  void Write(absl::string_view bytes) {
    cost_.header_bytes += static_cast<int64_t>(bytes.size());
    if (out_ != nullptr) out_->header.append(bytes.data(), bytes.size());
  }

  void WriteVarint(uint64_t value) {
    cost_.header_bytes += VarintBytes(value);
    if (out_ == nullptr) return;
    for (; value >= 0x80; value >>= 7) {
      out_->header.push_back(static_cast<char>(value | 0x80));
    }
    out_->header.push_back(static_cast<char>(value));
  }

  Reader input_;
  SplitMessage* out_;
  SplitCost cost_;
  bool only_light_ = false;
  int64_t fields_ = 0;
  int64_t numbers_ = 0;  // a lower bound of the numbers in lists
  // An upper bound of the numbers in lists, the elements and the bytes of text.
  int64_t light_numbers_ = 0;
  End end_ = End::kMalformed;  // the reason if the walk ends early
};

// Returns the error for a walk that ended with `end`, or OK.
absl::Status StatusOf(Walker::End end, const Descriptor* type) {
  switch (end) {
    case Walker::End::kDone:
    case Walker::End::kHeavy:
      return absl::OkStatus();
    case Walker::End::kMalformed:
      return MalformedMessageError(type->full_name());
    case Walker::End::kTooManyFields:
      return TooManyError(
          "fields, including those of nested messages and unknown ones",
          kMaxFields, "send every field once");
    case Walker::End::kTooManyNumbers:
      return TooManyError("numbers in its lists", kMaxListedNumbers,
                          "send shorter lists, and the elements of tensors "
                          "packed or as data");
  }
  return absl::InternalError("a walk ended in an unknown way");
}

// Splits a message in one walk, into memory that grows.
Walker::End SplitGrowing(ZeroCopyInputStream* input, int64_t size_bytes,
                         const Descriptor* type, bool only_light,
                         SplitMessage& message) {
  message.header.reserve(kUsualHeaderBytes);
  Walker walker(input, &message);
  const Walker::End end = walker.Run(size_bytes, type, only_light);
  // The header and the table grew while they were written. Each time, the old
  // and the new block existed together.
  const SplitCost& cost = walker.cost();
  message.bound_bytes =
      cost.bound_bytes + kUsualHeaderBytes +
      (kGrowthFactor - 1) *
          (cost.header_bytes +
           cost.payload_count * static_cast<int64_t>(sizeof(PayloadRange)));
  return end;
}

}  // namespace

absl::StatusOr<SplitCost> MeasureSplit(ZeroCopyInputStream* input,
                                       int64_t size_bytes,
                                       const Descriptor* type) {
  Walker walker(input, nullptr);
  ATTND_RETURN_IF_ERROR(
      StatusOf(walker.Run(size_bytes, type, /*only_light=*/false), type));
  return walker.cost();
}

absl::StatusOr<SplitMessage> SplitPayloads(ZeroCopyInputStream* input,
                                           int64_t size_bytes,
                                           const Descriptor* type,
                                           const SplitCost& cost) {
  SplitMessage message;
  message.header.reserve(static_cast<size_t>(cost.header_bytes));
  message.payloads.reserve(static_cast<size_t>(cost.payload_count));
  Walker walker(input, &message);
  ATTND_RETURN_IF_ERROR(
      StatusOf(walker.Run(size_bytes, type, /*only_light=*/false), type));
  message.bound_bytes = walker.cost().bound_bytes;
  return message;
}

absl::StatusOr<SplitMessage> SplitPayloads(const ReceivedMessage& received,
                                           const Descriptor* type) {
  ReceivedStream stream(received);
  SplitMessage message;
  const Walker::End end = SplitGrowing(&stream, received.size_bytes(), type,
                                       /*only_light=*/false, message);
  ATTND_RETURN_IF_ERROR(StatusOf(end, type));
  return message;
}

absl::StatusOr<std::optional<SplitMessage>> SplitIfLight(
    ZeroCopyInputStream* input, int64_t size_bytes, const Descriptor* type) {
  SplitMessage message;
  const Walker::End end =
      SplitGrowing(input, size_bytes, type, /*only_light=*/true, message);
  if (end == Walker::End::kHeavy) return std::nullopt;
  ATTND_RETURN_IF_ERROR(StatusOf(end, type));
  return message;
}

absl::StatusOr<std::optional<SplitMessage>> SplitIfLight(
    const ReceivedMessage& received, const Descriptor* type) {
  ReceivedStream stream(received);
  return SplitIfLight(&stream, received.size_bytes(), type);
}

absl::Status ParseHeader(SplitMessage& split,
                         google::protobuf::Message& message) {
  if (!message.ParseFromString(split.header)) {
    return MalformedMessageError(message.GetDescriptor()->full_name());
  }
  split.header = std::string();
  return absl::OkStatus();
}

const PayloadRange& PayloadOf(const SplitMessage& message,
                              absl::string_view data) {
  static constexpr PayloadRange kEmpty;
  if (data.empty()) return kEmpty;
  uint64_t index = 0;
  std::memcpy(&index, data.data(), sizeof(index));
  return message.payloads.at(index);
}

absl::Status MalformedMessageError(absl::string_view message_type) {
  return WithReason(absl::InvalidArgumentError(absl::StrCat(
                        "the message does not parse: expected the wire format "
                        "of ",
                        message_type, ", got other bytes")),
                    kMalformedMessage);
}

}  // namespace attnd

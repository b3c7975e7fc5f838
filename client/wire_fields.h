// Reads messages of protobuf's wire format field by field. To be used where
// protobuf's generated code would copy too much or must not be linked. Knows no
// particular message.
#ifndef ATTND_CLIENT_WIRE_FIELDS_H_
#define ATTND_CLIENT_WIRE_FIELDS_H_

#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/wire_format_lite.h"

namespace attnd::client {

// What protobuf's own parser allows a field.
inline constexpr uint32_t kMaxLength = std::numeric_limits<int32_t>::max() - 16;

constexpr uint32_t VarintTag(int number) {
  return google::protobuf::internal::WireFormatLite::MakeTag(
      number, google::protobuf::internal::WireFormatLite::WIRETYPE_VARINT);
}

constexpr uint32_t BytesTag(int number) {
  return google::protobuf::internal::WireFormatLite::MakeTag(
      number,
      google::protobuf::internal::WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
}

inline bool PassOver(google::protobuf::io::CodedInputStream& in, uint32_t tag,
                     std::string* unknown) {
  if (unknown == nullptr) {
    return google::protobuf::internal::WireFormatLite::SkipField(&in, tag);
  }
  google::protobuf::io::StringOutputStream stream(unknown);
  google::protobuf::io::CodedOutputStream out(&stream);
  return google::protobuf::internal::WireFormatLite::SkipField(&in, tag, &out);
}

// Reads fields up to the end of the message or of the limit. `read` is called
// with the tag of each. It returns whether the field could be read, or nullopt
// for a field that it does not know, which is skipped and copied to `unknown`
// unless that is null.
template <typename Read>
bool ReadFields(google::protobuf::io::CodedInputStream& in,
                std::string* unknown, const Read& read) {
  while (const uint32_t tag = in.ReadTag()) {
    const std::optional<bool> good = read(tag);
    if (!(good ? *good : PassOver(in, tag, unknown))) return false;
  }
  return in.ConsumedEntireMessage();
}

// One field that is a message: `read` reads its fields.
template <typename Read>
bool ReadNested(google::protobuf::io::CodedInputStream& in, const Read& read) {
  uint32_t length = 0;
  if (!in.ReadVarint32(&length) || length > kMaxLength) return false;
  const auto limit = in.PushLimit(static_cast<int>(length));
  // The limit of the message around it may come first, or the end of all.
  if (in.BytesUntilLimit() != static_cast<int>(length) || !read() ||
      in.BytesUntilLimit() != 0) {
    return false;
  }
  in.PopLimit(limit);
  return true;
}

// The length of a field within a nested one, which is not longer than that.
inline bool ReadLength(google::protobuf::io::CodedInputStream& in,
                       int* length) {
  uint32_t number = 0;
  if (!in.ReadVarint32(&number) ||
      static_cast<int64_t>(number) > in.BytesUntilLimit()) {
    return false;
  }
  *length = static_cast<int>(number);
  return true;
}

}  // namespace attnd::client

#endif  // ATTND_CLIENT_WIRE_FIELDS_H_

// HTTP/2 frames (RFC 9113) for tests that play a client.
#ifndef ATTND_TESTS_SERVER_CONNECTIONS_FRAMES_H_
#define ATTND_TESTS_SERVER_CONNECTIONS_FRAMES_H_

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "server/connections/frame_reader.h"

namespace attnd::server {

constexpr char kPreface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

inline std::string Frame(FrameType type, uint8_t flags = 0, uint32_t stream = 0,
                         std::string_view payload = {}) {
  const auto byte = [](size_t value, int shift) {
    return static_cast<char>(value >> shift & 0xff);
  };
  std::string frame;
  for (const int shift : {16, 8, 0}) frame += byte(payload.size(), shift);
  frame += static_cast<char>(type);
  frame += static_cast<char>(flags);
  for (const int shift : {24, 16, 8, 0}) frame += byte(stream, shift);
  return frame.append(payload);
}

// The headers of a call of GetServerInfo, as literals of HPACK (RFC 7541).
inline std::string Headers(uint32_t stream, uint8_t flags = 0) {
  std::string block;
  const auto add = [&block](const std::string& text) {
    block += static_cast<char>(text.size());
    block += text;
  };
  for (const auto& [name, value] :
       std::initializer_list<std::pair<const char*, const char*>>{
           {":method", "POST"},
           {":scheme", "http"},
           {":path", "/attnd.v1.AttentionService/GetServerInfo"},
           {":authority", "test"},
           {"content-type", "application/grpc"},
           {"te", "trailers"}}) {
    block += '\0';
    add(name);
    add(value);
  }
  return Frame(FrameType::kHeaders, flags | FrameHeader::kEndHeaders, stream,
               block);
}
inline std::string Reset(uint32_t stream) {
  return Frame(FrameType::kRstStream, 0, stream, std::string(4, '\0'));
}

}  // namespace attnd::server

#endif  // ATTND_TESTS_SERVER_CONNECTIONS_FRAMES_H_

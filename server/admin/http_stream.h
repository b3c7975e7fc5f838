// A connection of the admin port: reads the head of one request within limits
// of size and time, and hands cpp-httplib only what is safe for it.
#ifndef ATTND_SERVER_ADMIN_HTTP_STREAM_H_
#define ATTND_SERVER_ADMIN_HTTP_STREAM_H_

#include <httplib.h>
#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "base/unique_fd.h"

namespace attnd::server {

// For the first byte of a request, again for all of it, and for all of an
// answer.
inline constexpr std::chrono::seconds kHttpReadTime{2};
inline constexpr std::chrono::seconds kHttpWriteTime{10};
// How long a client whose request was refused unread may go on sending it.
inline constexpr std::chrono::seconds kHttpLingerTime{1};

// Why a request is refused.
struct HttpProblem {
  int status;
  std::string text;
};

// Returns the text for a refusal of which the status says all.
std::string WhyRefused(int status);

// The request line and the headers of a request.
struct HttpHead {
  std::string for_library;  // without the headers that it must not see
  // The values of each header, in their order. The names are in lower case.
  std::multimap<std::string, std::string> values;
};

// A connection with one request, as the library reads and writes it.
class HttpStream final : public httplib::Stream {
 public:
  // Ends all waiting when `stop` becomes readable. Does not own it.
  HttpStream(UniqueFd fd, int stop);

  // Reads the request line and the headers. Returns why the request is refused,
  // or nothing. The library then reads another request in place of a refused
  // one.
  std::optional<HttpProblem> ReadHead();
  // Returns whether the client has sent anything.
  bool HasBegun() const { return !buffer_.empty(); }
  // Returns the value of a header, whose name is in lower case, or nothing. The
  // first one counts if a client repeats it.
  std::string Header(const std::string& name) const;

  // Returns whether the time to read the request was up before its end.
  bool TimedOut() const { return timed_out_; }

  // Closes the connection. If the client may still be sending, first waits for
  // it, because the kernel would otherwise throw the answer away.
  void Close(bool may_send);

  bool is_readable() const override { return true; }
  bool is_writable() const override { return true; }
  ssize_t read(char* data, size_t size) override;
  ssize_t write(const char* data, size_t size) override;
  void get_remote_ip_and_port(std::string&, int&) const override {}
  void get_local_ip_and_port(std::string&, int&) const override {}
  // The library only checks that the number is small enough for select(2),
  // which this class does not use.
  socket_t socket() const override { return INVALID_SOCKET; }

 private:
  using Time = std::chrono::steady_clock::time_point;

  std::optional<HttpProblem> TryReadHead();
  // Returns whether the socket is ready for `events`.
  bool Await(int16_t events, Time by) const;
  // Returns how many bytes it has read, 0 at the end, or -1 if the time is up.
  ssize_t Receive(char* data, size_t size);

  const UniqueFd fd_;
  const int stop_;
  Time read_by_;
  bool timed_out_ = false;
  std::optional<Time> write_by_;
  HttpHead head_;
  std::string buffer_;
  size_t next_ = 0;  // the first byte in buffer_ that was not read yet
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_ADMIN_HTTP_STREAM_H_

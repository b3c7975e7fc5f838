#include "server/admin/http_stream.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <iterator>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace attnd::server {
namespace {

using std::chrono::milliseconds;

constexpr size_t kMaxHeadBytes = 16 << 10;  // request line and headers
constexpr int64_t kMaxLingerBytes = 1 << 20;

// The headers that the library gets to see: they say how a body is sent. Others
// are kept from it, because it acts on some of them in ways that a client could
// use against the server: it parses forms with an expensive regular expression
// (Content-Type), decompresses bodies without a limit (Content-Encoding),
// compresses answers at the highest level (Accept-Encoding), and matches a list
// of ranges with a recursive regular expression, and copies the answer for each
// (Range).
constexpr absl::string_view kLibraryHeaders[] = {"content-length", "expect",
                                                 "transfer-encoding"};

// Returns the refusal of a request for which the status says all.
HttpProblem Refused(int status) { return {status, WhyRefused(status)}; }

HttpHead SplitHead(absl::string_view text) {
  HttpHead head;
  bool first = true;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const size_t colon = line.find(':');
    const std::string name = absl::AsciiStrToLower(line.substr(0, colon));
    const bool is_header = !std::exchange(first, false) && line != "\r";
    if (is_header && colon != absl::string_view::npos) {
      head.values.emplace(name,
                          absl::StripAsciiWhitespace(line.substr(colon + 1)));
    }
    if (!is_header ||
        std::find(std::begin(kLibraryHeaders), std::end(kLibraryHeaders),
                  name) != std::end(kLibraryHeaders)) {
      absl::StrAppend(&head.for_library, line, "\n");
    }
  }
  return head;
}

// Checks the headers that say where a request ends and for which host it is. A
// proxy in front of the port could understand a doubtful one in another way.
std::optional<HttpProblem> CheckHead(absl::string_view text,
                                     const HttpHead& head) {
  for (const char* name : {"Host", "Content-Length"}) {
    if (head.values.count(absl::AsciiStrToLower(name)) > 1) {
      return HttpProblem{
          400, absl::StrCat("expected one header ", name, ", got several")};
    }
  }
  const absl::string_view line = text.substr(0, text.find("\r\n"));
  if (absl::EndsWith(line, " HTTP/1.1") && head.values.count("host") == 0) {
    return HttpProblem{400,
                       "expected the header Host, because HTTP/1.1 needs it"};
  }
  return std::nullopt;
}

}  // namespace

std::string WhyRefused(int status) {
  switch (status) {
    case 408:
      return absl::StrCat("the request was not complete within ",
                          kHttpReadTime.count(), " s");
    case 414:
      return "expected a request line of at most 8192 bytes";
    case 431:
      return absl::StrCat("expected a request line and headers of at most ",
                          kMaxHeadBytes, " bytes together");
    default:
      return "expected a request of HTTP/1.1, for example: GET /livez";
  }
}

HttpStream::HttpStream(UniqueFd fd, int stop)
    : fd_(std::move(fd)),
      stop_(stop),
      read_by_(std::chrono::steady_clock::now() + kHttpReadTime) {}

std::string HttpStream::Header(const std::string& name) const {
  const auto [first, last] = head_.values.equal_range(name);
  return first == last ? "" : first->second;
}

std::optional<HttpProblem> HttpStream::ReadHead() {
  std::optional<HttpProblem> refused = TryReadHead();
  if (refused) buffer_ = "GET / HTTP/1.1\r\n\r\n";
  return refused;
}

void HttpStream::Close(bool may_send) {
  int unread = 0;
  ioctl(fd_.get(), FIONREAD, &unread);
  if (!may_send && unread == 0) return;
  shutdown(fd_.get(), SHUT_WR);
  read_by_ = std::chrono::steady_clock::now() + kHttpLingerTime;
  std::array<char, 4096> part{};
  for (int64_t total = 0; total < kMaxLingerBytes;) {
    const ssize_t size = Receive(part.data(), part.size());
    if (size <= 0) return;
    total += size;
  }
}

ssize_t HttpStream::read(char* data, size_t size) {
  if (next_ == buffer_.size()) return Receive(data, size);
  const size_t part = buffer_.copy(data, size, next_);
  next_ += part;
  return static_cast<ssize_t>(part);
}

ssize_t HttpStream::write(const char* data, size_t size) {
  if (!write_by_) write_by_ = std::chrono::steady_clock::now() + kHttpWriteTime;
  for (size_t sent = 0; sent < size;) {
    const ssize_t part =
        send(fd_.get(), data + sent, size - sent, MSG_NOSIGNAL);
    if (part >= 0) {
      sent += static_cast<size_t>(part);
    } else if (errno != EINTR &&
               (errno != EAGAIN || !Await(POLLOUT, *write_by_))) {
      return -1;
    }
  }
  return static_cast<ssize_t>(size);
}

std::optional<HttpProblem> HttpStream::TryReadHead() {
  size_t end = std::string::npos;
  while (end == std::string::npos) {
    if (buffer_.size() > kMaxHeadBytes) return Refused(431);
    std::array<char, 4096> part{};
    const ssize_t size = Receive(part.data(), part.size());
    if (size <= 0) {
      if (buffer_.empty()) return std::nullopt;
      return Refused(size == 0 ? 400 : 408);
    }
    // What is left of a head that is not the first part may end it.
    const size_t from = buffer_.size() < 3 ? 0 : buffer_.size() - 3;
    buffer_.append(part.data(), static_cast<size_t>(size));
    // Other protocols do not begin with a letter, or send no empty line.
    if (!absl::ascii_isupper(static_cast<unsigned char>(buffer_[0]))) {
      return Refused(400);
    }
    end = buffer_.find("\r\n\r\n", from);
  }
  end += 4;
  if (end > kMaxHeadBytes) return Refused(431);
  const absl::string_view all = buffer_;
  head_ = SplitHead(all.substr(0, end));
  std::optional<HttpProblem> problem = CheckHead(all, head_);
  buffer_ = absl::StrCat(head_.for_library, all.substr(end));
  return problem;
}

bool HttpStream::Await(int16_t events, Time by) const {
  std::array<pollfd, 2> polled = {
      pollfd{.fd = fd_.get(), .events = events, .revents = 0},
      pollfd{.fd = stop_, .events = POLLIN, .revents = 0}};
  for (;;) {
    const auto left =
        std::chrono::ceil<milliseconds>(by - std::chrono::steady_clock::now());
    const int ready =
        poll(polled.data(), polled.size(),
             static_cast<int>(std::max<int64_t>(left.count(), 0)));
    if (ready < 0 && errno == EINTR) continue;
    return ready > 0 && polled[1].revents == 0;
  }
}

ssize_t HttpStream::Receive(char* data, size_t size) {
  while (Await(POLLIN, read_by_)) {
    const ssize_t received = recv(fd_.get(), data, size, 0);
    if (received >= 0) return received;
    if (errno != EINTR && errno != EAGAIN) return 0;
  }
  timed_out_ = true;
  return -1;
}

}  // namespace attnd::server

#include "server/admin/http_port.h"

#include <httplib.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "base/unique_fd.h"

namespace attnd::server {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using SteadyTime = std::chrono::steady_clock::time_point;

constexpr int kThreads = 4;
// How many accepted connections may be silent or wait for a thread.
constexpr size_t kMaxWaiting = 16;
// How many refused connections may wait for the client to close its side.
constexpr size_t kMaxLeaving = 8;
constexpr size_t kMaxHeadBytes = 16 << 10;  // request line and headers
constexpr int64_t kMaxBodyBytes = 64 << 10;
// For the first byte of a request, again for all of it, and for all of an
// answer.
constexpr seconds kReadTime{2};
constexpr seconds kWriteTime{10};
// How long a client whose request was refused unread may go on sending it.
constexpr seconds kLingerTime{1};
constexpr int64_t kMaxLingerBytes = 1 << 20;
// How long to wait after a failed accept.
constexpr milliseconds kAcceptPause{100};

constexpr char kBusy[] =
    "HTTP/1.1 503 Service Unavailable\r\n"
    "Connection: close\r\n"
    "Retry-After: 1\r\n"
    "Content-Type: text/plain\r\n"
    "Content-Length: 58\r\n\r\n"
    "The admin port serves too many clients now. Try again soon";

// The headers that the library gets to see: they say how a body is sent. Others
// are kept from it, because it acts on some of them in ways that a client could
// use against the server: it parses forms with an expensive regular expression
// (Content-Type), decompresses bodies without a limit (Content-Encoding),
// compresses answers at the highest level (Accept-Encoding), and matches a list
// of ranges with a recursive regular expression, and copies the answer for each
// (Range).
constexpr absl::string_view kLibraryHeaders[] = {"content-length", "expect",
                                                 "transfer-encoding"};

struct Problem {
  int status;
  std::string text;
};

std::string WhyRefused(int status) {
  switch (status) {
    case 408:
      return absl::StrCat("the request was not complete within ",
                          kReadTime.count(), " s");
    case 414:
      return "expected a request line of at most 8192 bytes";
    case 431:
      return absl::StrCat("expected a request line and headers of at most ",
                          kMaxHeadBytes, " bytes together");
    default:
      return "expected a request of HTTP/1.1, for example: GET /livez";
  }
}

// Returns the refusal of a request for which the status says all.
Problem Refused(int status) { return {status, WhyRefused(status)}; }

// The request line and the headers of a request.
struct Head {
  std::string for_library;  // without the headers that it must not see
  // The values of each header, in their order.
  std::multimap<std::string, std::string> values;

  // Returns the value of a header. The first one counts if a client repeats it.
  std::string Value(const std::string& name) const {
    const auto [first, last] = values.equal_range(name);
    return first == last ? "" : first->second;
  }
};

Head SplitHead(absl::string_view text) {
  Head head;
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
std::optional<Problem> CheckHead(absl::string_view text, const Head& head) {
  for (const char* name : {"Host", "Content-Length"}) {
    if (head.values.count(absl::AsciiStrToLower(name)) > 1) {
      return Problem{
          400, absl::StrCat("expected one header ", name, ", got several")};
    }
  }
  const absl::string_view line = text.substr(0, text.find("\r\n"));
  if (absl::EndsWith(line, " HTTP/1.1") && head.values.count("host") == 0) {
    return Problem{400, "expected the header Host, because HTTP/1.1 needs it"};
  }
  return std::nullopt;
}

// A connection with one request, as the library reads and writes it.
class HttpStream final : public httplib::Stream {
 public:
  // Ends all waiting when `stop` becomes readable. Does not own it.
  HttpStream(UniqueFd fd, int stop) : fd_(std::move(fd)), stop_(stop) {}

  // Reads the request line and the headers. Returns why the request is refused,
  // or nothing. The library then reads another request in place of a refused
  // one.
  std::optional<Problem> ReadHead() {
    std::optional<Problem> refused = TryReadHead();
    if (refused) buffer_ = "GET / HTTP/1.1\r\n\r\n";
    return refused;
  }
  // Returns whether the client has sent anything.
  bool HasBegun() const { return !buffer_.empty(); }
  // Returns the value of a header, whose name is in lower case, or nothing.
  std::string Header(const std::string& name) const {
    return head_.Value(name);
  }

  // Returns whether the time to read the request was up before its end.
  bool TimedOut() const { return timed_out_; }

  // Closes the connection. If the client may still be sending, first waits for
  // it, because the kernel would otherwise throw the answer away.
  void Close(bool may_send) {
    int unread = 0;
    ioctl(fd_.get(), FIONREAD, &unread);
    if (!may_send && unread == 0) return;
    shutdown(fd_.get(), SHUT_WR);
    read_by_ = std::chrono::steady_clock::now() + kLingerTime;
    std::array<char, 4096> part{};
    for (int64_t total = 0; total < kMaxLingerBytes;) {
      const ssize_t size = Receive(part.data(), part.size());
      if (size <= 0) return;
      total += size;
    }
  }

  bool is_readable() const override { return true; }
  bool is_writable() const override { return true; }
  ssize_t read(char* data, size_t size) override {
    if (next_ == buffer_.size()) return Receive(data, size);
    const size_t part = buffer_.copy(data, size, next_);
    next_ += part;
    return static_cast<ssize_t>(part);
  }
  ssize_t write(const char* data, size_t size) override {
    if (!write_by_) write_by_ = std::chrono::steady_clock::now() + kWriteTime;
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
  void get_remote_ip_and_port(std::string&, int&) const override {}
  void get_local_ip_and_port(std::string&, int&) const override {}
  // The library only checks that the number is small enough for select(2),
  // which this class does not use.
  socket_t socket() const override { return INVALID_SOCKET; }

 private:
  std::optional<Problem> TryReadHead() {
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
    std::optional<Problem> problem = CheckHead(all, head_);
    buffer_ = absl::StrCat(head_.for_library, all.substr(end));
    return problem;
  }

  // Returns whether the socket is ready for `events`.
  bool Await(int16_t events, SteadyTime by) const {
    std::array<pollfd, 2> polled = {
        pollfd{.fd = fd_.get(), .events = events, .revents = 0},
        pollfd{.fd = stop_, .events = POLLIN, .revents = 0}};
    for (;;) {
      const auto left = std::chrono::ceil<milliseconds>(
          by - std::chrono::steady_clock::now());
      const int ready =
          poll(polled.data(), polled.size(),
               static_cast<int>(std::max<int64_t>(left.count(), 0)));
      if (ready < 0 && errno == EINTR) continue;
      return ready > 0 && polled[1].revents == 0;
    }
  }

  // Returns how many bytes it has read, 0 at the end, or -1 if the time is up.
  ssize_t Receive(char* data, size_t size) {
    while (Await(POLLIN, read_by_)) {
      const ssize_t received = recv(fd_.get(), data, size, 0);
      if (received >= 0) return received;
      if (errno != EINTR && errno != EAGAIN) return 0;
    }
    timed_out_ = true;
    return -1;
  }

  const UniqueFd fd_;
  const int stop_;
  SteadyTime read_by_ = std::chrono::steady_clock::now() + kReadTime;
  bool timed_out_ = false;
  std::optional<SteadyTime> write_by_;
  Head head_;
  std::string buffer_;
  size_t next_ = 0;  // the first byte in buffer_ that was not read yet
};

// Gives access to the part of the library that reads one request and writes its
// answer. The library's own loop has no limit on waiting connections or on the
// time of a request, and refuses sockets whose number is above 1023.
class Library final : public httplib::Server {
 public:
  template <typename Stream>
  void Serve(Stream& stream,
             const std::function<void(httplib::Request&)>& prepare) {
    bool closed = true;
    if constexpr (requires {
                    process_request(stream, true, closed, prepare);
                  }) {
      process_request(stream, true, closed, prepare);
    } else {  // since version 0.16
      process_request(stream, "", 0, "", 0, true, closed, prepare);
    }
  }
};

// The library routes every request here, because it would match the path of a
// client with regular expressions.
constexpr char kOnlyPath[] = "/";

// Decodes a name or a value of a query. A '%' that no byte follows stays.
std::string Decoded(absl::string_view text) {
  std::string decoded;
  uint32_t byte = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const absl::string_view digits = text.substr(i + 1, 2);
    if (text[i] == '%' && digits.size() == 2 &&
        absl::ascii_isxdigit(static_cast<unsigned char>(digits[0])) &&
        absl::ascii_isxdigit(static_cast<unsigned char>(digits[1])) &&
        absl::SimpleHexAtoi(digits, &byte)) {
      decoded += static_cast<char>(byte);
      i += 2;
    } else {
      decoded += text[i] == '+' ? ' ' : text[i];
    }
  }
  return decoded;
}

// Returns the parameters in the query of `target`. The library's own list lacks
// parameters that are equal to an earlier one, such as in a list of numbers.
std::multimap<std::string, std::string> ParamsOf(absl::string_view target) {
  std::multimap<std::string, std::string> params;
  const size_t query = target.find('?');
  if (query == absl::string_view::npos) return params;
  for (const absl::string_view each :
       absl::StrSplit(target.substr(query + 1), '&', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> param =
        absl::StrSplit(each, absl::MaxSplits('=', 1));
    params.emplace(Decoded(param.first), Decoded(param.second));
  }
  return params;
}

HttpRequest Convert(const httplib::Request& request,
                    const HttpStream& connection) {
  return {.method = request.method,
          .path = request.target.substr(0, request.target.find('?')),
          .params = ParamsOf(request.target),
          .host = connection.Header("host"),
          .accept = connection.Header("accept"),
          .content_type = connection.Header("content-type"),
          .body = request.body};
}

void Set(httplib::Response& to, const HttpResponse& response) {
  to.status = response.status;
  for (const auto& [name, value] : response.headers) to.set_header(name, value);
  to.set_content(response.body, response.content_type);
}

// Checks the headers of a request with a body, before the body is read.
std::optional<Problem> CheckBody(const httplib::Request& request) {
  int64_t size_bytes = 0;
  const std::string length = request.get_header_value("Content-Length");
  if (length.empty() || request.has_header("Transfer-Encoding")) {
    return Problem{411, "expected the header Content-Length"};
  }
  if (!absl::SimpleAtoi(length, &size_bytes) || size_bytes < 0) {
    return Problem{400, "Content-Length: expected a whole number >= 0"};
  }
  if (size_bytes > kMaxBodyBytes) {
    return Problem{413,
                   absl::StrCat("expected a body of at most ", kMaxBodyBytes,
                                " bytes, got ", size_bytes)};
  }
  return std::nullopt;
}

}  // namespace

class HttpPort::Impl {
 public:
  Impl(Listener listener, Site site)
      : listener_(std::move(listener)),
        site_(std::move(site)),
        stop_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (!stop_.valid()) {
      throw std::system_error(errno, std::generic_category(), "eventfd");
    }
    try {
      threads_.emplace_back([this] { Accept(); });
      for (int i = 0; i < kThreads; ++i) {
        threads_.emplace_back([this] { Work(); });
      }
    } catch (...) {
      Stop();
      throw;
    }
  }

  ~Impl() { Stop(); }

 private:
  void Stop() {
    eventfd_write(stop_.get(), 1);
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  // A connection that no thread serves, and when the port closes it.
  struct Client {
    UniqueFd fd;
    SteadyTime until;
  };

  void Accept() {
    pthread_setname_np(pthread_self(), "attnd-admin");  // for top -H
    for (;;) {
      std::vector<pollfd> polled;
      const auto add = [&](const UniqueFd& fd) {
        polled.push_back({.fd = fd.get(), .events = POLLIN, .revents = 0});
      };
      add(stop_);
      for (const Client& client : silent_) add(client.fd);
      for (const Client& client : leaving_) add(client.fd);
      for (const UniqueFd& socket : listener_.sockets) add(socket);
      poll(polled.data(), polled.size(), MillisecondsLeft());
      auto next = polled.begin();
      const auto is_readable = [&] { return (next++)->revents != 0; };
      if (is_readable()) return;
      const SteadyTime now = std::chrono::steady_clock::now();
      for (Client& client : std::exchange(silent_, {})) {
        if (is_readable()) {
          GiveToAThread(std::move(client.fd));
        } else if (client.until > now) {
          silent_.push_back(std::move(client));
        }
      }
      for (Client& client : std::exchange(leaving_, {})) {
        const bool stays = !is_readable() || Discard(client.fd);
        if (stays && client.until > now) leaving_.push_back(std::move(client));
      }
      for (const UniqueFd& socket : listener_.sockets) {
        if (is_readable()) AcceptFrom(socket.get());
      }
    }
  }

  // Returns the time until the first of the clients must be closed, or -1.
  int MillisecondsLeft() const {
    std::optional<SteadyTime> first;
    for (const std::deque<Client>* clients : {&silent_, &leaving_}) {
      if (clients->empty()) continue;
      const SteadyTime until = clients->front().until;
      first = std::min(first.value_or(until), until);
    }
    if (!first) return -1;
    const auto left = std::chrono::ceil<milliseconds>(
        *first - std::chrono::steady_clock::now());
    return static_cast<int>(std::max<int64_t>(left.count(), 0));
  }

  // Reads what the client has sent. Returns whether it may send more.
  static bool Discard(const UniqueFd& fd) {
    std::array<char, 4096> part{};
    const ssize_t size = recv(fd.get(), part.data(), part.size(), 0);
    return size > 0 || (size < 0 && (errno == EAGAIN || errno == EINTR));
  }

  // Tells a client that there is no place for it. Keeps the connection for a
  // while, because a request that came after its end would make the kernel
  // reset it, and some clients then do not see the answer.
  void Refuse(UniqueFd fd) {
    send(fd.get(), kBusy, sizeof(kBusy) - 1, MSG_NOSIGNAL);
    shutdown(fd.get(), SHUT_WR);
    if (leaving_.size() == kMaxLeaving) leaving_.pop_front();
    leaving_.push_back(
        {std::move(fd), std::chrono::steady_clock::now() + kLingerTime});
  }

  void GiveToAThread(UniqueFd fd) {
    {
      const std::lock_guard lock(mutex_);
      ready_.push_back(std::move(fd));
    }
    changed_.notify_one();
  }

  void AcceptFrom(int listening) {
    UniqueFd fd(
        accept4(listening, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd.valid()) {
      // For example, the process may have too many open files.
      if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR) {
        pollfd stop = {.fd = stop_.get(), .events = POLLIN, .revents = 0};
        poll(&stop, 1, static_cast<int>(kAcceptPause.count()));
      }
      return;
    }
    size_t waiting = silent_.size();
    {
      const std::lock_guard lock(mutex_);
      waiting += ready_.size();
    }
    if (waiting >= kMaxWaiting) {
      if (silent_.empty()) {
        Refuse(std::move(fd));
        return;
      }
      // Clients that send nothing must not keep out one that does.
      Refuse(std::move(silent_.front().fd));
      silent_.pop_front();
    }
    silent_.push_back(
        {std::move(fd), std::chrono::steady_clock::now() + kReadTime});
  }

  void Work() {
    pthread_setname_np(pthread_self(), "attnd-admin");
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return stopping_ || !ready_.empty(); });
      if (stopping_) return;
      UniqueFd fd = std::move(ready_.front());
      ready_.pop_front();
      lock.unlock();
      Serve(std::move(fd));
      lock.lock();
    }
  }

  void Serve(UniqueFd fd) {
    HttpStream connection(std::move(fd), stop_.get());
    const std::optional<Problem> refused = connection.ReadHead();
    if (!connection.HasBegun()) return;
    using Handled = httplib::Server::HandlerResponse;
    bool may_send = true;
    bool reads_body = false;
    Library library;
    library.set_pre_routing_handler(
        [&](const httplib::Request& request, httplib::Response& response) {
          if (refused) {
            Set(response, site_.problem(refused->status, refused->text));
            return Handled::Handled;
          }
          const HttpRequest unread = Convert(request, connection);
          if (request.method != "POST") {
            may_send = request.has_header("Content-Length") ||
                       request.has_header("Transfer-Encoding");
            Set(response, site_.answer(unread));
            return Handled::Handled;
          }
          if (const auto refusal = site_.refuse_unread(unread)) {
            Set(response, *refusal);
            return Handled::Handled;
          }
          const std::optional<Problem> problem = CheckBody(request);
          if (!problem) {
            reads_body = true;
            return Handled::Unhandled;
          }
          Set(response, site_.problem(problem->status, problem->text));
          return Handled::Handled;
        });
    library.Post(kOnlyPath, [&](const httplib::Request& request,
                                httplib::Response& response) {
      may_send = false;
      Set(response, site_.answer(Convert(request, connection)));
    });
    library.set_error_handler(
        [&](const httplib::Request&, httplib::Response& response) {
          if (!response.body.empty()) return;
          // The library answers 400 to every body that ends too early.
          const int status = connection.TimedOut() ? 408 : response.status;
          const bool body_ended = reads_body && !connection.TimedOut();
          Set(response,
              site_.problem(status, body_ended
                                        ? "expected a body of as many bytes as "
                                          "the header Content-Length says"
                                        : WhyRefused(status)));
        });
    library.set_exception_handler([&](const httplib::Request&,
                                      httplib::Response& response,
                                      const std::exception_ptr&) {
      Set(response, site_.problem(500, "the server failed to answer"));
    });
    library.Serve(connection, [](httplib::Request& request) {
      request.path = std::string(kOnlyPath);
    });
    connection.Close(may_send);
  }

  const Listener listener_;
  const Site site_;
  const UniqueFd stop_;  // readable from the moment when the port stops
  // Only the thread that accepts uses the next two. Those that are closed first
  // are in front.
  std::deque<Client> silent_;   // have sent nothing
  std::deque<Client> leaving_;  // refused
  std::mutex mutex_;
  std::condition_variable changed_;
  // mutex_ guards the next two.
  std::deque<UniqueFd> ready_;  // readable, for the next free thread
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

HttpPort::HttpPort(Listener listener, Site site)
    : impl_(std::make_unique<Impl>(std::move(listener), std::move(site))) {}

HttpPort::~HttpPort() = default;

}  // namespace attnd::server

#include "server/admin/http_port.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/unique_fd.h"

namespace attnd::server {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class HttpPortTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto listener = Listener::Open(*ListenAddress::Parse("127.0.0.1:0"));
    ASSERT_TRUE(listener.ok()) << listener.status();
    port_number_ = listener->address.port;
    port_ = std::make_unique<HttpPort>(
        *std::move(listener),
        HttpPort::Site{
            .answer =
                [this](const HttpRequest& request) { return Answer(request); },
            .refuse_unread =
                [](const HttpRequest& request) -> std::optional<HttpResponse> {
              if (request.host != "evil.example") return std::nullopt;
              return HttpResponse{.status = 403, .body = "unread"};
            },
            .problem =
                [](int status, const std::string& problem) {
                  return HttpResponse{.status = status,
                                      .content_type = "text/plain",
                                      .body = "refused: " + problem};
                }});
  }

  HttpResponse Answer(const HttpRequest& request) {
    ++handled_;
    if (request.path == "/throw") {
      throw std::runtime_error("\"no\"\r\nX: y");
    }
    if (request.path == "/headers") {
      return {.body = request.host + "|" + request.accept + "|" +
                      request.content_type};
    }
    std::string params;
    for (const auto& [name, value] : request.params) {
      params.append(name).append("=").append(value).append(";");
    }
    return {.content_type = "text/plain",
            .body = request.method + " " + request.path + " " + params + " " +
                    request.body};
  }

  UniqueFd Connect() const {
    UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(port_number_));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)),
              0);
    return fd;
  }
  static void Send(const UniqueFd& fd, const std::string& text) {
    send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL);
  }
  static std::string ReadAll(const UniqueFd& fd) {
    std::string all;
    std::array<char, 4096> part{};
    ssize_t size = 0;
    while ((size = recv(fd.get(), part.data(), part.size(), 0)) > 0) {
      all.append(part.data(), static_cast<size_t>(size));
    }
    return all;
  }
  std::string Ask(const std::string& text) const {
    const UniqueFd fd = Connect();
    Send(fd, text);
    return ReadAll(fd);
  }

  int port_number_ = 0;
  std::atomic<int> handled_{0};
  std::unique_ptr<HttpPort> port_;
};

TEST_F(HttpPortTest, PassesOnWhatTheClientAsks) {
  EXPECT_THAT(Ask("GET /a%20b?x=1%2B&y=%26&x=2 HTTP/1.1\r\nHost: a\r\n\r\n"),
              EndsWith("\r\n\r\nGET /a%20b x=1+;x=2;y=&; "));
  EXPECT_THAT(
      Ask("GET /?x=1&x=1&y&=z&&%zz=%4&a=b=+c HTTP/1.1\r\nHost: a\r\n\r\n"),
      EndsWith("GET / =z;%zz=%4;a=b= c;x=1;x=1;y=; "));
  EXPECT_THAT(
      Ask("POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcdef"),
      EndsWith("\r\n\r\nPOST /p  abc"));
  const std::string head = Ask("HEAD /h HTTP/1.0\r\n\r\n");
  EXPECT_THAT(head, HasSubstr("Content-Length: 9\r\n"));
  EXPECT_THAT(head, EndsWith("\r\n\r\n"));
}

TEST_F(HttpPortTest, AnswersOneRequestOfEachConnection) {
  const std::string request = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
  const std::string answer = Ask(request + request + request);
  EXPECT_THAT(answer, HasSubstr("Connection: close\r\n"));
  EXPECT_THAT(answer, EndsWith("\r\n\r\nGET /a  "));
  EXPECT_EQ(handled_, 1);
}

TEST_F(HttpPortTest, RefusesWhatExceedsALimitOrIsNotHttp) {
  const std::string long_line(9000, 'x');
  const std::string long_head(20'000, 'x');
  const struct {
    std::string request;
    int status;
  } cases[] = {
      {"\x16\x03\x01 a TLS client", 400},
      {"hello\r\n\r\n", 400},
      {"GET /\r\n\r\n", 400},
      {"GET / HTTP/2.0\r\n\r\n", 400},
      {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400},
      {"GET /" + long_line + " HTTP/1.1\r\nHost: a\r\n\r\n", 414},
      {"GET / HTTP/1.1\r\nHost: a\r\nA: " + long_head + "\r\n\r\n", 431},
      {"GET / HTTP/1.1\r\nHost: a\r\nA: " + long_head, 431},
      {"POST / HTTP/1.1\r\nHost: a\r\n\r\n", 411},
      {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: "
       "chunked\r\n\r\n0\r\n\r\n",
       411},
      {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400},
      {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400},
      {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 65537\r\n\r\n" +
           std::string(65537, 'x'),
       413},
      {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: "
       "99999999999999999999\r\n\r\n",
       400}};
  for (const auto& [request, status] : cases) {
    EXPECT_THAT(Ask(request),
                StartsWith("HTTP/1.1 " + std::to_string(status) + " "))
        << request.substr(0, 100);
  }
  EXPECT_EQ(handled_, 0);
  // A client that ends its side in the middle of a request.
  const UniqueFd half = Connect();
  Send(half, "GET / HT");
  shutdown(half.get(), SHUT_WR);
  EXPECT_THAT(ReadAll(half), StartsWith("HTTP/1.1 400 "));
}

TEST_F(HttpPortTest, RefusesADoubtfulHostOrLength) {
  const struct {
    std::string request;
    std::string problem;
  } cases[] = {
      {"GET /a HTTP/1.1\r\n\r\n", "expected the header Host"},
      {"GET /a HTTP/1.1\r\nHost : b\r\n\r\n", "expected the header Host"},
      {"GET /a HTTP/1.1\r\nHost: b\r\nhOST: evil.example\r\n\r\n",
       "expected one header Host, got several"},
      {"POST /p HTTP/1.1\r\nHost: b\r\nContent-Length: 3\r\n"
       "content-length: 2\r\n\r\nabc",
       "expected one header Content-Length, got several"}};
  for (const auto& [request, problem] : cases) {
    const std::string answer = Ask(request);
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 400 ")) << request;
    EXPECT_THAT(answer, HasSubstr(problem));
  }
  EXPECT_EQ(handled_, 0);
  EXPECT_THAT(Ask("GET /a HTTP/1.0\r\n\r\n"), EndsWith("\r\n\r\nGET /a  "));
  EXPECT_THAT(Ask("GET /a HTTP/1.1\r\nHost:\r\n\r\n"),
              EndsWith("\r\n\r\nGET /a  "));
}

// Each of these headers would make the library do something that is expensive.
TEST_F(HttpPortTest, IgnoresHeadersThatCouldBeUsedAgainstIt) {
  std::string ranges = "bytes=0-";
  while (ranges.size() < 8000) ranges += ",0-";
  const std::string answer =
      Ask("GET /a HTTP/1.1\r\nHost: a\r\nRange: " + ranges +
          "\r\nAccept-Encoding: br, gzip\r\n\r\n");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(answer, EndsWith("\r\n\r\nGET /a  "));
  EXPECT_THAT(Ask("POST /p HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\n"
                  "Content-Length: 3\r\n\r\nabc"),
              EndsWith("\r\n\r\nPOST /p  abc"));
}

// The library would take such a body apart and leave no body, or refuse it.
TEST_F(HttpPortTest, PassesOnTheBodyOfAFormUnparsed) {
  std::string body =
      "--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n"
      "value\r\n--b--\r\n";
  for (const char* type :
       {"multipart/form-data; boundary=b", "MULTIPART/form-data; boundary=b",
        "application/x-www-form-urlencoded"}) {
    EXPECT_THAT(Ask("POST /p HTTP/1.1\r\nHost: a\r\ncontent-TYPE: " +
                    std::string(type) + "\r\nContent-Length: " +
                    std::to_string(body.size()) + "\r\n\r\n" + body),
                EndsWith("\r\n\r\nPOST /p  " + body))
        << type;
  }
  body.assign(20'000, 'x');
  EXPECT_THAT(Ask("POST /p HTTP/1.1\r\nHost: a\r\nContent-Type: "
                  "application/x-www-form-urlencoded\r\nContent-Length: "
                  "20000\r\n\r\n" +
                  body),
              EndsWith("\r\n\r\nPOST /p  " + body));
}

TEST_F(HttpPortTest, PassesOnTheHeadersThatItReads) {
  EXPECT_THAT(Ask("GET /headers HTTP/1.1\r\nHOST:  a:1 \r\naccept:b, c;q=1\r\n"
                  "Content-Type: d\r\nContent-Type: e\r\nX: f\r\n\r\n"),
              EndsWith("\r\n\r\na:1|b, c;q=1|d"));
  EXPECT_THAT(Ask("GET /headers HTTP/1.0\r\nHost\r\n\r\n"),
              EndsWith("\r\n\r\n||"));
}

// Nothing follows the head, so an answer that waits for the body is another.
TEST_F(HttpPortTest, RefusesAPostBeforeItReadsTheBody) {
  const UniqueFd client = Connect();
  Send(client,
       "POST /p HTTP/1.1\r\nHost: evil.example\r\n"
       "Content-Length: 100\r\n\r\n");
  const std::string answer = ReadAll(client);
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 403 "));
  EXPECT_THAT(answer, EndsWith("\r\n\r\nunread"));
  EXPECT_EQ(handled_, 0);
}

// The port waits for the rest, so the answer says that the time is up.
TEST_F(HttpPortTest, ARequestThatStopsInTheMiddleIsLate) {
  for (const char* part : {"GET /a HTTP/1.1\r\nHost: a\r\nHos",
                           "POST /p HTTP/1.1\r\nHost: a\r\n"
                           "Content-Length: 5\r\n\r\nab"}) {
    const std::string answer = Ask(part);
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 408 ")) << part;
    EXPECT_THAT(answer, EndsWith("the request was not complete within 2 s"));
  }
  EXPECT_EQ(handled_, 0);
}

TEST_F(HttpPortTest, ABodyThatEndsEarlyIsShorterThanItsLength) {
  const UniqueFd client = Connect();
  Send(client, "POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab");
  shutdown(client.get(), SHUT_WR);
  const std::string answer = ReadAll(client);
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(answer, HasSubstr("Content-Length says"));
  EXPECT_EQ(handled_, 0);
}

TEST_F(HttpPortTest, AnExceptionIsTheAnswer500) {
  const std::string answer = Ask("GET /throw HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 500 "));
  EXPECT_THAT(answer, ::testing::Not(HasSubstr("X: y")));
}

TEST_F(HttpPortTest, AnswersManyClientsAtOnce) {
  std::vector<std::thread> clients;
  clients.reserve(4);
  std::atomic<int> right{0};
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back([&] {
      for (int j = 0; j < 50; ++j) {
        if (Ask("GET /a HTTP/1.1\r\nHost: a\r\n\r\n").find("GET /a") !=
            std::string::npos) {
          ++right;
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(right, 200);
}

TEST_F(HttpPortTest, RefusesClientsWhileTooManyWait) {
  constexpr int kClients = 40;
  std::vector<UniqueFd> silent;
  silent.reserve(kClients);
  for (int i = 0; i < kClients; ++i) silent.push_back(Connect());
  int refused = 0;
  constexpr int kLeast = kClients - 16;
  for (int scan = 0; scan < 1000 && refused < kLeast; ++scan) {
    for (const UniqueFd& fd : silent) {
      pollfd polled = {.fd = fd.get(), .events = POLLIN, .revents = 0};
      if (poll(&polled, 1, 1) == 0) continue;
      const std::string answer = ReadAll(fd);
      if (answer.empty()) continue;  // its time was up
      EXPECT_THAT(answer, StartsWith("HTTP/1.1 503 "));
      EXPECT_THAT(answer, EndsWith("Try again soon"));
      ++refused;
    }
  }
  EXPECT_GE(refused, kLeast);
  // Once they are gone, there is room.
  silent.clear();
  std::string answer;
  for (int i = 0; i < 1000 && handled_ == 0; ++i) {
    answer = Ask("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
  }
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 "));
}

TEST_F(HttpPortTest, ClientsThatSendNothingKeepOutNobody) {
  std::vector<UniqueFd> silent;
  silent.reserve(30);
  for (int i = 0; i < 30; ++i) silent.push_back(Connect());
  for (int i = 0; i < 30; ++i) {
    EXPECT_THAT(Ask("GET /a HTTP/1.1\r\nHost: a\r\n\r\n"),
                StartsWith("HTTP/1.1 200 "));
  }
  // One that begins late is answered like others. The last one was not refused
  // for the sake of the clients above, because it was the newest.
  Send(silent.back(), "GET /late HTTP/1.1\r\nHost: a\r\n\r\n");
  const std::string late = ReadAll(silent.back());
  EXPECT_TRUE(late.empty() || late.find("GET /late") != std::string::npos)
      << late;
}

TEST_F(HttpPortTest, CutsOffAClientThatSendsNothing) {
  EXPECT_EQ(ReadAll(Connect()), "");
  EXPECT_EQ(handled_, 0);
}

// A connection that ends before it has taken the request is reset, and then
// some clients do not see the answer.
TEST_F(HttpPortTest, ARefusedClientCanSendItsRequest) {
  // A client that is slow here is reset, because the port waits for a second.
  bool reset = true;
  for (int attempt = 0; attempt < 20 && reset; ++attempt) {
    std::vector<UniqueFd> silent;
    silent.reserve(17);
    for (int i = 0; i < 17; ++i) silent.push_back(Connect());
    const UniqueFd& refused = silent.front();
    pollfd polled = {.fd = refused.get(), .events = POLLIN, .revents = 0};
    ASSERT_EQ(poll(&polled, 1, 60'000), 1);
    Send(refused, "GET /a HTTP/1.1\r\nHost: a\r\n");
    // This fails if the system has answered the first part with a reset.
    reset = send(refused.get(), "\r\n", 2, MSG_NOSIGNAL) != 2;
    EXPECT_THAT(ReadAll(refused), StartsWith("HTTP/1.1 503 "));
  }
  EXPECT_FALSE(reset);
}

TEST_F(HttpPortTest, EndsWhileClientsAreInTheMiddle) {
  std::vector<UniqueFd> clients;
  clients.reserve(10);
  for (int i = 0; i < 10; ++i) {
    clients.push_back(Connect());
    Send(clients.back(), "GET / HTTP/1.1\r\nHost:");
  }
  port_.reset();
  for (const UniqueFd& client : clients) ReadAll(client);
}

}  // namespace
}  // namespace attnd::server

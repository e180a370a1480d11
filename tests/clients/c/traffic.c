/* Traffic for measurements: both ends of a connection over TLS, in one process, and what they cost it. A line of the standard input asks for a
   round, `PORT KIND MILLISECONDS`; a line of the output answers, `UNITS NANOSECONDS`: how often something was done, and the CPU time of the
   process meanwhile, kernel included. Each round has a connection of its own. Kinds:

     ask     a request of 64 bytes, and an answer of 64
     send    a request of 64 KiB, and an answer of 64 bytes
     ...k    the same, as Kafka would write them

   Arguments: certificate, key. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SMALL = 64, LARGE = 1 << 16 };

static SSL_CTX *connecting, *accepting;

static void give_up(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static uint64_t now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static int move(int (*by)(SSL *, unsigned char *, int), SSL *ssl, unsigned char *bytes, int count)
{
    for (int moved; count > 0; bytes += moved, count -= moved)
        if ((moved = by(ssl, bytes, count)) <= 0)
            return 0;
    return 1;
}

static int give(SSL *ssl, unsigned char *bytes, int count) { return SSL_write(ssl, bytes, count); }
static int take(SSL *ssl, unsigned char *bytes, int count) { return SSL_read(ssl, bytes, count); }

static SSL *begin(SSL_CTX *context, int descriptor)
{
    int one = 1;
    setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    SSL *ssl = SSL_new(context);
    SSL_set_fd(ssl, descriptor);
    return ssl;
}

struct end {
    int listener, bytes;
    unsigned char *answer;
};

static void *answer(void *argument)
{
    struct end *end = argument;
    int descriptor = accept(end->listener, NULL, NULL);
    unsigned char *request = malloc((size_t)end->bytes);
    SSL *ssl = begin(accepting, descriptor);
    if (SSL_accept(ssl) != 1)
        give_up("no handshake at the end that accepts");
    while (move(take, ssl, request, end->bytes)) {
        memcpy(end->answer + 4, request + 8, 4);
        if (!move(give, ssl, end->answer, SMALL))
            break;
    }
    SSL_free(ssl);
    close(descriptor);
    free(request);
    return NULL;
}

static void number(unsigned char *to, uint32_t value)
{
    for (int byte = 0; byte < 4; byte++)
        to[byte] = (unsigned char)(value >> (24 - 8 * byte));
}

/* A Produce request of version 3 (api key 0), of which no more is right than its header and the length of its records. */
static void as_kafka(unsigned char *request, int bytes, unsigned char *reply)
{
    static const unsigned char header[] = {0, 0, 0, 3, 0, 0, 0, 0, 0, 7, 't', 'r', 'a', 'f', 'f', 'i', 'c', 255, 255, 0, 1, 0, 0, 117, 48, 0, 0, 0, 1, 0, 1, 't', 0, 0, 0, 1, 0, 0, 0, 0};
    memset(request, 0, (size_t)bytes);
    memset(reply, 0, SMALL);
    number(request, (uint32_t)bytes - 4);
    memcpy(request + 4, header, sizeof header);
    number(request + 4 + sizeof header, (uint32_t)(bytes - 8 - (int)sizeof header));
    number(reply, SMALL - 4);
}

static void round_of(int port, const char *kind, uint64_t milliseconds)
{
    static unsigned char request[LARGE], reply[SMALL], got[SMALL];
    int bytes = kind[0] == 'a' ? SMALL : LARGE, is_kafka = kind[strlen(kind) - 1] == 'k' && strcmp(kind, "ask") != 0;
    memset(request, 'x', LARGE);
    memset(reply, 'x', SMALL);
    if (is_kafka)
        as_kafka(request, bytes, reply);
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0), descriptor = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&place, sizeof place) != 0 || listen(listener, 1) != 0)
        give_up("cannot listen");
    struct end end = {listener, bytes, reply};
    pthread_t thread;
    pthread_create(&thread, NULL, answer, &end);
    if (connect(descriptor, (struct sockaddr *)&place, sizeof place) != 0)
        give_up("cannot connect");
    SSL *ssl = begin(connecting, descriptor);
    if (SSL_connect(ssl) != 1)
        give_up("no handshake");
    uint64_t begun = 0, cpu = 0, units = 0;
    /* The first half second is for the tracer to find the process. */
    for (uint64_t start = now(CLOCK_MONOTONIC), id = 0;; id++) {
        uint64_t time = now(CLOCK_MONOTONIC) - start;
        if (begun == 0 && time > 500000000) {
            begun = time;
            cpu = now(CLOCK_PROCESS_CPUTIME_ID);
            units = id;
        }
        if (begun != 0 && time - begun > milliseconds * 1000000) {
            printf("%llu %llu\n", (unsigned long long)(id - units), (unsigned long long)(now(CLOCK_PROCESS_CPUTIME_ID) - cpu));
            break;
        }
        if (is_kafka)
            number(request + 8, (uint32_t)id);
        if (!move(give, ssl, request, bytes) || !move(take, ssl, got, SMALL))
            give_up("the connection broke");
    }
    SSL_shutdown(ssl);
    SSL_free(ssl);
    close(descriptor);
    pthread_join(thread, NULL);
    close(listener);
    fflush(stdout);
}

int main(int count, char **arguments)
{
    if (count != 3)
        give_up("arguments: certificate, key");
    connecting = SSL_CTX_new(TLS_client_method());
    accepting = SSL_CTX_new(TLS_server_method());
    if (SSL_CTX_use_certificate_file(accepting, arguments[1], SSL_FILETYPE_PEM) != 1 || SSL_CTX_use_PrivateKey_file(accepting, arguments[2], SSL_FILETYPE_PEM) != 1)
        give_up("no certificate");
    char kind[8];
    int port;
    unsigned long long milliseconds;
    while (scanf("%d %7s %llu", &port, kind, &milliseconds) == 3)
        round_of(port, kind, milliseconds);
    return 0;
}

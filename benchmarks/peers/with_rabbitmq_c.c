/* rabbitmq-c: confirm.select, at most 1000 unconfirmed messages, each confirm read as a frame.
 *
 * Its author recommends this: https://github.com/alanxz/rabbitmq-c/issues/766
 * examples/amqp_consumer.c shows how to read frames.
 * cc -O2 with_rabbitmq_c.c -lrabbitmq
 */

#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    CHANNEL = 1,
    WINDOW = 1000,
    PREFETCH = 200,
    ACK_EVERY = 100,
    FRAME_MAX = 131072,
    BODY_MAX = 1 << 20
};

static void die(const char *what)
{
    fprintf(stderr, "failed: %s\n", what);
    exit(1);
}

static void check(int status, const char *what)
{
    if (status != AMQP_STATUS_OK)
        die(what);
}

static void check_reply(amqp_rpc_reply_t reply, const char *what)
{
    if (reply.reply_type != AMQP_RESPONSE_NORMAL)
        die(what);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static amqp_connection_state_t open_connection(char *url)
{
    struct amqp_connection_info info;
    check(amqp_parse_url(url, &info), "URL");
    amqp_connection_state_t connection = amqp_new_connection();
    check(amqp_socket_open(amqp_tcp_socket_new(connection), info.host, info.port), "connect");
    check_reply(amqp_login(connection, info.vhost, 0, FRAME_MAX, 0, AMQP_SASL_METHOD_PLAIN,
                           info.user, info.password),
                "login");
    amqp_channel_open(connection, CHANNEL);
    check_reply(amqp_get_rpc_reply(connection), "channel.open");
    return connection;
}

static void close_connection(amqp_connection_state_t connection)
{
    check_reply(amqp_channel_close(connection, CHANNEL, AMQP_REPLY_SUCCESS), "channel.close");
    check_reply(amqp_connection_close(connection, AMQP_REPLY_SUCCESS), "connection.close");
    amqp_destroy_connection(connection);
}

/* Waits for one basic.ack, marks its messages in confirmed[] and returns how many are new there. */
static long read_confirm(amqp_connection_state_t connection, char *confirmed, uint64_t *lowest)
{
    amqp_frame_t frame;
    amqp_maybe_release_buffers(connection);
    check(amqp_simple_wait_frame(connection, &frame), "wait for a confirm");
    if (frame.frame_type != AMQP_FRAME_METHOD || frame.payload.method.id != AMQP_BASIC_ACK_METHOD)
        die("the broker refused or returned a message, or closed the channel");
    amqp_basic_ack_t *ack = frame.payload.method.decoded;
    uint64_t first = ack->multiple ? *lowest : ack->delivery_tag;
    long found = 0;
    for (uint64_t tag = first; tag <= ack->delivery_tag; tag++) {
        found += !confirmed[tag];
        confirmed[tag] = 1;
    }
    if (ack->multiple)
        *lowest = ack->delivery_tag + 1;
    return found;
}

static void publish(char *url, long count, amqp_bytes_t body)
{
    amqp_basic_properties_t properties = {
        ._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_TYPE_FLAG | AMQP_BASIC_APP_ID_FLAG
            | AMQP_BASIC_TIMESTAMP_FLAG | AMQP_BASIC_MESSAGE_ID_FLAG
            | AMQP_BASIC_DELIVERY_MODE_FLAG,
        .content_type = amqp_cstring_bytes("application/cloudevents+json"),
        .type = amqp_cstring_bytes("UsuarioCreado"),
        .app_id = amqp_cstring_bytes("ecomarket"),
        .delivery_mode = AMQP_DELIVERY_PERSISTENT,
    };
    amqp_bytes_t exchange = amqp_cstring_bytes("user_events");
    char *confirmed = calloc(count + 1, 1);  /* indexed by delivery tag, which starts at 1 */
    uint64_t lowest = 1;
    amqp_connection_state_t connection = open_connection(url);
    amqp_confirm_select(connection, CHANNEL);
    check_reply(amqp_get_rpc_reply(connection), "confirm.select");
    for (long sent = 0, done = 0; done < count;) {
        if (sent == count || sent - done == WINDOW) {  /* polling for confirms is slower */
            done += read_confirm(connection, confirmed, &lowest);
            continue;
        }
        char id[24];
        snprintf(id, sizeof id, "%ld", ++sent);
        properties.message_id = amqp_cstring_bytes(id);
        properties.timestamp = time(NULL);
        check(amqp_basic_publish(connection, CHANNEL, exchange, amqp_empty_bytes, 1, 0,
                                 &properties, body),
              "basic.publish");
    }
    close_connection(connection);
    free(confirmed);
}

static void consume(char *url, long count, int each)
{
    amqp_bytes_t queue = amqp_cstring_bytes("loyalty_queue"), consumer = amqp_cstring_bytes("peer");
    amqp_connection_state_t connection = open_connection(url);
    amqp_basic_qos(connection, CHANNEL, 0, PREFETCH, 0);
    check_reply(amqp_get_rpc_reply(connection), "basic.qos");
    amqp_basic_consume(connection, CHANNEL, queue, consumer, 0, 0, 0, amqp_empty_table);
    check_reply(amqp_get_rpc_reply(connection), "basic.consume");
    for (long done = 1; done <= count; done++) {
        amqp_envelope_t envelope;
        amqp_maybe_release_buffers(connection);
        check_reply(amqp_consume_message(connection, &envelope, NULL, 0), "wait for a message");
        if (each || done % ACK_EVERY == 0 || done == count)
            check(amqp_basic_ack(connection, CHANNEL, envelope.delivery_tag, !each), "basic.ack");
        amqp_destroy_envelope(&envelope);
    }
    /* A close alone can lose acks: rabbitmq-server issue 10327. */
    amqp_basic_cancel(connection, CHANNEL, consumer);
    check_reply(amqp_get_rpc_reply(connection), "basic.cancel");
    close_connection(connection);
}

static amqp_bytes_t read_body(const char *path)
{
    static char bytes[BODY_MAX];
    FILE *file = fopen(path, "rb");
    if (!file)
        die(path);
    amqp_bytes_t body = {fread(bytes, 1, sizeof bytes, file), bytes};
    fclose(file);
    return body;
}

int main(int argc, char **argv)
{
    int publishes = argc == 5 && strcmp(argv[1], "publish") == 0;
    if (!publishes && (argc < 4 || strcmp(argv[1], "consume") != 0))
        die("usage: publish URL COUNT BODY_FILE | consume URL COUNT [each|multiple]");
    long count = atol(argv[3]);
    amqp_bytes_t body = publishes ? read_body(argv[4]) : amqp_empty_bytes;
    double started = now();
    if (publishes)
        publish(argv[2], count, body);
    else
        consume(argv[2], count, argc < 5 || strcmp(argv[4], "each") == 0);
    printf("%f\n", now() - started);
    return 0;
}
